"""The method: semivariogram, reweighted loss, GeoCLIP's model. It imports nothing else of lib, and its own
parts relatively, so the folder can be copied into another project under any name."""

from .errors import BundleError
from .loss import SemivariogramLoss
from .semivariogram import FittedSemivariogram, fit_semivariogram

__all__ = ["BundleError", "FittedSemivariogram", "SemivariogramLoss", "fit_semivariogram"]
