"""The method: semivariogram, reweighted loss, GeoCLIP's model. Imports nothing else of lib, and its own parts
relatively: the folder can be copied into another project, under any name."""

from . import controls as controls  # registers them
from .errors import BundleError
from .loss import SemivariogramLoss
from .semivariogram import FittedSemivariogram, fit_semivariogram

__all__ = ["BundleError", "FittedSemivariogram", "SemivariogramLoss", "fit_semivariogram"]
