"""Places on the sphere: draws, noise, a lattice, cells, the nearest. Coordinates are in degrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree

from lib.method.geodesy import EARTH_RADIUS_KM, Array, chord_to_rad, km_to_rad, rad_to_km, unit_vectors
from lib.runs.machine import on_device

EARTH_AREA_KM2 = 4.0 * math.pi * EARTH_RADIUS_KM**2


def coordinates_of(vectors: np.ndarray) -> np.ndarray:
    """Latitude and longitude in degrees, [..., 2], of ``vectors`` [..., 3] of any length above 0."""
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    return np.stack((np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))), -1)


def nearest(
    coordinates_deg: np.ndarray, among_deg: np.ndarray, rank: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Row of ``among_deg`` [M, 2] that is nearest to each of ``coordinates_deg`` [N, 2], and its distance in
    km, both [N]; ``rank`` 2: the second nearest, that is, the nearest other of the same places."""
    chord, row = KDTree(unit_vectors(among_deg)).query(unit_vectors(coordinates_deg), k=[rank])
    return row[:, 0], rad_to_km(chord_to_rad(chord[:, 0] ** 2))


def lattice(spacing_km: float) -> np.ndarray:
    """Nearly uniform points of the sphere, float64 [N, 2], each standing for ``spacing_km``**2 of surface.

    Source: the Fibonacci lattice of Gonzalez, "Measurement of areas on a sphere using Fibonacci ...", 2010.
    """
    count = max(2, round(EARTH_AREA_KM2 / spacing_km**2))
    index = np.arange(count)
    golden = (1.0 + math.sqrt(5.0)) / 2.0
    latitude = np.rad2deg(np.arcsin((2.0 * index + 1.0) / count - 1.0))
    return np.stack((latitude, wrap_longitude(360.0 * (index / golden % 1.0))), -1)


def uniform_on_sphere(count: int, generator: np.random.Generator, limit_deg: float = 90.0) -> np.ndarray:
    """``count`` points drawn uniformly by area between the latitudes +-``limit_deg``, float64 [count, 2]."""
    limit = math.sin(math.radians(limit_deg))
    latitude = np.rad2deg(np.arcsin(generator.uniform(-limit, limit, count)))
    return np.stack((latitude, generator.uniform(-180.0, 180.0, count)), -1)


@dataclass(frozen=True)
class EqualAreaGrid:
    """Cells of exactly the same area, nearly square: bands of latitude, each cut into equal longitudes.

    ``counts``: cells of each band, from south to north, [R]. ``first``: index of each band's first cell,
    which begins at the 180th meridian, [R]. ``sines``: sine of the latitude of each band's edges, [R + 1].
    """

    counts: np.ndarray
    first: np.ndarray
    sines: np.ndarray

    @classmethod
    def of(cls, side_km: float) -> EqualAreaGrid:
        """Cells of about ``side_km`` x ``side_km``: a band has as many as fit at its middle. Its edges follow
        from its share of all cells, as area is proportional to the difference of sines (Archimedes)."""
        bands = max(1, round(np.pi * EARTH_RADIUS_KM / side_km))
        middle = (np.arange(bands) + 0.5) / bands * np.pi - np.pi / 2.0
        fitting = np.rint(2.0 * np.pi * EARTH_RADIUS_KM * np.cos(middle) / side_km)
        counts = np.maximum(1, fitting).astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(counts)))
        return cls(counts, ends[:-1], ends / ends[-1] * 2.0 - 1.0)

    def cell_of(self, coordinates_deg: np.ndarray) -> np.ndarray:
        """Index, int64 [...], of the cell that holds each of ``coordinates_deg`` [..., 2]."""
        sine = np.sin(np.deg2rad(coordinates_deg[..., 0]))
        band = np.clip(np.searchsorted(self.sines, sine, side="right") - 1, 0, len(self.counts) - 1)
        share = (wrap_longitude(coordinates_deg[..., 1]) + 180.0) / 360.0
        column = (share * self.counts[band]).astype(np.int64)
        return self.first[band] + np.minimum(column, self.counts[band] - 1)

    def bounds_of(self, cells: np.ndarray) -> np.ndarray:
        """South, west, north and east edge in degrees, float64 [N, 4], of ``cells`` [N]."""
        band = np.searchsorted(self.first, cells, side="right") - 1
        width = 360.0 / self.counts[band]
        west = (cells - self.first[band]) * width - 180.0
        edges = np.rad2deg(np.arcsin(np.clip(self.sines, -1.0, 1.0)))
        return np.column_stack((edges[band], west, edges[band + 1], west + width))


def wrap_longitude(longitude_deg: Array) -> Array:
    """Longitude in [-180, 180) degrees."""
    wrapped = (longitude_deg + 180.0) % 360.0 - 180.0
    return wrapped - 360.0 * (wrapped >= 180.0)  # just west of -180 the remainder rounds to 360


def destination(coordinates_deg: Array, east_km: Array, north_km: Array) -> Array:
    """Coordinates [..., 2] reached from ``coordinates_deg`` [..., 2] by an offset [...] in the local tangent
    plane, azimuthal equidistant: it gives bearing and distance of a great circle."""
    xp = torch if isinstance(coordinates_deg, torch.Tensor) else np
    latitude, longitude = xp.deg2rad(coordinates_deg[..., 0]), xp.deg2rad(coordinates_deg[..., 1])
    length_rad = km_to_rad(xp.hypot(east_km, north_km))
    bearing = xp.arctan2(east_km, north_km)
    along, across = xp.cos(length_rad), xp.sin(length_rad)
    sin_target = xp.sin(latitude) * along + xp.cos(latitude) * across * xp.cos(bearing)
    turn = xp.arctan2(xp.sin(bearing) * across * xp.cos(latitude), along - xp.sin(latitude) * sin_target)
    target = xp.rad2deg(xp.arcsin(xp.clip(sin_target, -1.0, 1.0)))
    return xp.stack((target, wrap_longitude(xp.rad2deg(longitude + turn))), -1)


def jitter(
    parts: Sequence[torch.Tensor], sigmas_m: Sequence[float], generator: torch.Generator
) -> torch.Tensor:
    """Coordinates of all ``parts`` [N, 2], one below the other, moved by Gaussian noise of each part's
    ``sigmas_m``, metres in each direction, drawn on the processor. Source: GeoCLIP adds it in degrees,
    without cos(latitude); here metres are metres."""
    coordinates_deg, noise_km = torch.cat(tuple(parts)), []
    if not any(sigmas_m):
        return coordinates_deg
    for part, sigma_m in zip(parts, sigmas_m, strict=True):
        noise = torch.zeros(part.shape, dtype=part.dtype)
        if sigma_m:
            noise = noise.normal_(0.0, 1.0, generator=generator) * (sigma_m / 1000.0)
        noise_km.append(noise)
    offset = on_device(torch.cat(noise_km), coordinates_deg.device)
    return destination(coordinates_deg, offset[..., 0], offset[..., 1])
