"""The plain way of doing the same work, as one writes it first: whole matrices, a loop over lags, NumPy
inside the loss."""

from __future__ import annotations

import math

import numpy as np
import torch

from lib.method.geodesy import EARTH_RADIUS_KM
from lib.method.negatives import Pairs, Reweighting
from lib.method.semivariogram import FittedSemivariogram


def haversine_rad(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    """Great-circle distances, radians [N, M], between ``a_deg`` [N, 2] and ``b_deg`` [M, 2]."""
    (lat_a, lon_a), (lat_b, lon_b) = np.deg2rad(a_deg).T[:, :, None], np.deg2rad(b_deg).T[:, None]
    inner = (
        np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    )
    return 2.0 * np.arcsin(np.sqrt(np.clip(inner, 0.0, 1.0)))


def semivariogram(unit: np.ndarray, coordinates_deg: np.ndarray, width_rad: float) -> np.ndarray:
    """gamma [K] over lags of ``width_rad`` from 0 to pi: two N x N matrices, and one mask over them for each
    lag."""
    distance, dissimilarity = haversine_rad(coordinates_deg, coordinates_deg), 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.nan)
    gamma = np.full(math.ceil(math.pi / width_rad - 1e-9), np.nan)
    for lag in range(len(gamma)):
        chosen = dissimilarity[(distance >= lag * width_rad) & (distance < (lag + 1) * width_rad)]
        if len(chosen):
            gamma[lag] = chosen.mean(dtype=np.float64)
    return gamma


def reweighting(fitted: FittedSemivariogram, pairs: Pairs) -> Reweighting:
    """``semivariogram``'s weights, in NumPy: off the device and back in every step."""
    count, unit, places = len(pairs.logits), pairs.unit.cpu().numpy(), pairs.place_deg.double().cpu().numpy()
    distance = haversine_rad(places[:count], places)
    expected = fitted.gamma(distance.ravel()).reshape(distance.shape)
    look_alike = np.maximum(0.0, expected - (1.0 - unit[:count] @ unit.T))
    sign = np.where(distance <= fitted.range_rad, -pairs.alpha, pairs.beta)
    log_weight = torch.from_numpy((sign * look_alike).astype(np.float32))
    return Reweighting(log_weight=log_weight.to(pairs.logits.device))


def retrieve(
    photos: np.ndarray, gallery: np.ndarray, truth_deg: np.ndarray, gallery_deg: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best place [N] and its error in km [N], photo by photo: similarities, geodesics, a sort of the row."""
    best, errors = [], []
    for photo, truth in zip(photos, truth_deg, strict=True):
        order = np.argsort(-(gallery @ photo), kind="stable")[0]
        error = haversine_rad(truth[None], gallery_deg)[0] * EARTH_RADIUS_KM
        best.append(order)
        errors.append(error[order])
    return np.array(best), np.array(errors)
