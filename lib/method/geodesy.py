"""Degrees, radians, kilometres: the one place where they are converted.

Coordinates are latitude and longitude in degrees (WGS84), in this order, as the last axis of an array. Distances are
great circles on a sphere of mean radius. Imports nothing of ``lib``.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

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
    """Points of the unit sphere, float64 [..., 3], of ``coordinates_deg`` [..., 2] (latitude, longitude).

    float64 whatever the input: in float32 the cosine of a kilometre is 1.
    """
    if isinstance(coordinates_deg, torch.Tensor):
        xp, angles = torch, torch.deg2rad(coordinates_deg.to(torch.float64))
    else:
        xp, angles = np, np.deg2rad(np.asarray(coordinates_deg, dtype=np.float64))
    latitude, longitude = angles[..., 0], angles[..., 1]
    return xp.stack((xp.cos(latitude) * xp.cos(longitude), xp.cos(latitude) * xp.sin(longitude), xp.sin(latitude)), -1)


def chord_to_rad(squared_chord: Array) -> Array:
    """Great-circle angle in radians, 0..pi, of the ``squared_chord``, 0..4, between two points of the unit sphere."""
    xp = torch if isinstance(squared_chord, torch.Tensor) else np
    return 2.0 * xp.arcsin(xp.sqrt(xp.clip(squared_chord, 0.0, 4.0)) / 2.0)


def pairwise_distance_rad(a_deg: Array, b_deg: Array) -> Array:
    """Great-circle distances in radians, float64 [N, M], between ``a_deg`` [N, 2] and ``b_deg`` [M, 2].

    Through the chord, sqrt(2 - 2 cos h), whose rounding error in float64 is below 1e-7 rad (0.7 m) everywhere but
    near the antipode (below 1e-7 rad there as well, since 2 asin(c/2) is steep only at c = 2).
    """
    return chord_to_rad(2.0 - 2.0 * unit_vectors(a_deg) @ unit_vectors(b_deg).T)


def distance_km(a_deg: np.ndarray, b_deg: np.ndarray) -> np.ndarray:
    """Great-circle distances in kilometres, float64 [...], between ``a_deg`` [..., 2] and ``b_deg`` [..., 2], paired.

    Haversine formula; agrees with ``pyproj.Geod`` on the same sphere to a millimetre, within 20 km of the antipode to
    0.3 m.
    """
    lat_a, lon_a = np.moveaxis(np.deg2rad(np.asarray(a_deg, dtype=np.float64)), -1, 0)
    lat_b, lon_b = np.moveaxis(np.deg2rad(np.asarray(b_deg, dtype=np.float64)), -1, 0)
    haversine = np.sin((lat_b - lat_a) / 2.0) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2.0) ** 2
    return rad_to_km(chord_to_rad(4.0 * haversine))


def wrap_longitude(longitude_deg: Array) -> Array:
    """Longitude in [-180, 180) degrees."""
    wrapped = (longitude_deg + 180.0) % 360.0 - 180.0
    return wrapped - 360.0 * (wrapped >= 180.0)  # just west of -180 the remainder rounds to 360


def destination(coordinates_deg: Array, east_km: Array, north_km: Array) -> Array:
    """Coordinates [..., 2] reached from ``coordinates_deg`` [..., 2] by an offset in the local tangent plane.

    The plane is azimuthal equidistant: the offset (``east_km``, ``north_km``) [...] gives bearing and distance of a
    great circle, so a kilometre is a kilometre at every latitude and across the 180th meridian and the poles.
    """
    xp = torch if isinstance(coordinates_deg, torch.Tensor) else np
    latitude, longitude = xp.deg2rad(coordinates_deg[..., 0]), xp.deg2rad(coordinates_deg[..., 1])
    length_rad = km_to_rad(xp.hypot(east_km, north_km))
    bearing = xp.arctan2(east_km, north_km)
    sin_target = xp.sin(latitude) * xp.cos(length_rad) + xp.cos(latitude) * xp.sin(length_rad) * xp.cos(bearing)
    target_latitude = xp.arcsin(xp.clip(sin_target, -1.0, 1.0))
    target_longitude = longitude + xp.arctan2(
        xp.sin(bearing) * xp.sin(length_rad) * xp.cos(latitude), xp.cos(length_rad) - xp.sin(latitude) * sin_target
    )
    return xp.stack((xp.rad2deg(target_latitude), wrap_longitude(xp.rad2deg(target_longitude))), -1)


def jitter(coordinates_deg: torch.Tensor, sigma_m: float, generator: torch.Generator) -> torch.Tensor:
    """``coordinates_deg`` [N, 2] moved by Gaussian noise of ``sigma_m`` metres in each direction of the tangent plane.

    Source: GeoCLIP adds the noise in degrees, without cos(latitude); here metres are metres (method.md, section 2).
    """
    if sigma_m == 0.0:
        return coordinates_deg
    noise_km = torch.randn(
        coordinates_deg.shape, generator=generator, device=generator.device, dtype=coordinates_deg.dtype
    ) * (sigma_m / 1000.0)
    noise_km = noise_km.to(coordinates_deg.device)
    return destination(coordinates_deg, noise_km[..., 0], noise_km[..., 1])
