"""The method: semivariogram, reweighted loss, GeoCLIP's model. Imports nothing else of lib."""

from lib.method import controls as controls  # registers them
from lib.method.errors import BundleError
from lib.method.loss import SemivariogramLoss
from lib.method.semivariogram import FittedSemivariogram, fit_semivariogram

__all__ = ["BundleError", "FittedSemivariogram", "SemivariogramLoss", "fit_semivariogram"]
