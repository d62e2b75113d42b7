"""Degrees, radians, kilometres: the one place where they are converted.

Coordinates are latitude and longitude in degrees (WGS84), in this order, as the last axis of an array.
Distances are great circles on a sphere of mean radius.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

from .errors import BundleError

EARTH_RADIUS_KM = 6371.0088
"""Mean radius R1 of the WGS84 ellipsoid, in kilometres (Moritz, 2000)."""
Array = TypeVar("Array", np.ndarray, torch.Tensor)


def rad_to_km(angle_rad: Array | float) -> Array | float:
    """Length in kilometres of a great-circle arc of ``angle_rad`` radians."""
    return angle_rad * EARTH_RADIUS_KM


def km_to_rad(length_km: Array | float) -> Array | float:
    """Angle in radians of a great-circle arc of ``length_km`` kilometres."""
    return length_km / EARTH_RADIUS_KM


def unit_vectors(coordinates_deg: Array) -> Array:
    """Points of the unit sphere [..., 3] of ``coordinates_deg`` [..., 2], always float64: in float32 the
    cosine of a kilometre is 1."""
    if isinstance(coordinates_deg, torch.Tensor):
        xp, angles = torch, torch.deg2rad(coordinates_deg.to(torch.float64))
    else:
        xp, angles = np, np.deg2rad(np.asarray(coordinates_deg, dtype=np.float64))
    latitude, longitude = angles[..., 0], angles[..., 1]
    along = xp.cos(latitude)
    return xp.stack((along * xp.cos(longitude), along * xp.sin(longitude), xp.sin(latitude)), -1)


def chord_to_rad(squared_chord: Array) -> Array:
    """Great-circle angle, radians, 0..pi, of a ``squared_chord``, 0..4, of the unit sphere."""
    xp = torch if isinstance(squared_chord, torch.Tensor) else np
    return 2.0 * xp.arcsin(xp.sqrt(xp.clip(squared_chord, 0.0, 4.0)) / 2.0)


def check_degrees(coordinates_deg: np.ndarray) -> None:
    """Refuse coordinates [N, 2] that are out of range, not finite, or all radians: a :class:`BundleError`.

    There is no land so near to 0, 0 as radians would say. A toy world may lie within a degree of it.
    """
    places = np.asarray(coordinates_deg, dtype=np.float64)
    if (wrong := ~(np.abs(places) <= [90.0, 360.0]).all(-1)).any():
        row = int(wrong.argmax())
        found = ", ".join(f"{value:g}" for value in places[row])
        said = f"{found} is no latitude and longitude in degrees, in this order"
        raise BundleError(f"coordinates, row {row} from 0: {said}")
    if (np.abs(places) > 1.0).any() and (np.abs(places) <= [math.pi / 2.0, math.pi]).all():
        said = "they are radians, not degrees; use rad2deg"
        raise BundleError(f"all coordinates lie in the sea around 0, 0: {said}")


def check_precision(coordinates_deg: Array) -> None:
    """Refuse coordinates in float16 (up to 7 km off), bfloat16 (56 km) or shorter: a :class:`BundleError`."""
    dtype = coordinates_deg.dtype
    if "float" in str(dtype) and dtype.itemsize < 4:
        said = f"coordinates in {dtype} are off by up to {'56' if 'bf' in str(dtype) else '7'} km"
        raise BundleError(f"{said}: give float32 or float64, also under mixed precision")


def pairwise_distance_rad(a_deg: Array, b_deg: Array) -> Array:
    """Great-circle distances, radians, float64 [N, M], of ``a_deg`` [N, 2] and ``b_deg`` [M, 2], to 1e-7."""
    return chord_to_rad(2.0 - 2.0 * unit_vectors(a_deg) @ unit_vectors(b_deg).T)


def distance_km(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    """Great-circle distances, km, float64 [...], between ``a_deg`` [..., 2] and ``b_deg`` [..., 2], paired.

    Haversine formula: a millimetre from ``pyproj.Geod`` on the same sphere, 0.3 m near the antipode.
    """
    lat_a, lon_a = np.moveaxis(np.deg2rad(np.asarray(a_deg, dtype=np.float64)), -1, 0)
    lat_b, lon_b = np.moveaxis(np.deg2rad(np.asarray(b_deg, dtype=np.float64)), -1, 0)
    across = np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2.0) ** 2
    haversine = np.sin((lat_b - lat_a) / 2.0) ** 2 + across
    return rad_to_km(chord_to_rad(4.0 * haversine))
