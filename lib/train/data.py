"""What a training reads: photos in batches, and the queue of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from lib.data import features, manifest
from lib.data.draws import generator
from lib.method.errors import BundleError
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.runs.machine import on_device
from lib.train import curve, gallery


class Batch(NamedTuple):
    """A batch of B photos on the device where it is used: rows of the manifest, int64 [B], and as a tensor;
    coordinates [B, 2] and features v [B, D], float32; what the head sees, [b, D], of this process's share."""

    rows: np.ndarray
    numbers: torch.Tensor
    places_deg: torch.Tensor
    features: torch.Tensor
    seen: torch.Tensor


@dataclass(frozen=True)
class TrainingData:
    """What a training reads. ``scale``: the head's features are divided by it. ``partner_deg`` [N, 2], for
    strategy ``shuffled`` alone: of each row of the manifest the place that takes its place."""

    frozen: features.Features
    train_rows: np.ndarray
    validation_rows: np.ndarray
    coordinates_deg: torch.Tensor
    gallery_deg: np.ndarray
    curve: FittedSemivariogram | None
    scale: float
    partner_deg: torch.Tensor | None = None

    @classmethod
    def read(cls, run: Run, with_curve: bool) -> TrainingData:
        """Everything from the run's files. BundleError: a curve is needed, and does not rise."""
        photos = features.photos(run, manifest.PLACES)
        frozen, rows = features.read(run, photos), manifest.rows_of(photos, "train")
        fitted = curve.fit_run(run)[1] if with_curve else None
        if fitted is not None and not fitted.rises:
            said = "looks do not change with distance here; leave strategies that read the curve out of"
            raise BundleError(f"{run.semivariogram}: {said} training.strategies")
        scale = 1.0  # GeoCLIP's own protocol
        if run.settings.backbone.centred:  # the head sees values of order 1
            scale = float((frozen.rows(rows[:: max(1, len(rows) // 4_096)]) - frozen.mean).std())
        validation, places = manifest.rows_of(photos, "validation"), manifest.coordinates(photos)
        chosen, among = _some(rows, run.settings.training.photos), gallery.coordinates(run, photos)
        return cls(frozen, chosen, validation, torch.from_numpy(places), among, fitted, scale)

    def shuffled(self, seed: int, device: torch.device) -> TrainingData:
        """With one permutation of the training photos, drawn from ``seed``."""
        partners, order = self.coordinates_deg.clone(), generator(seed, "shuffled weights")
        permuted = self.train_rows[torch.randperm(len(self.train_rows), generator=order).numpy()]
        partners[self.train_rows] = self.coordinates_deg[permuted]
        return replace(self, partner_deg=partners.float().to(device))

    def batch(self, epoch: int, rows: np.ndarray, own: slice, device: torch.device) -> Batch:
        """The photos ``rows`` in ``epoch`` (from 1); the head sees those of ``own``."""
        numbers = on_device(torch.from_numpy(rows), device)
        features = self.frozen.rows(rows if self.frozen.on_card is None else numbers, device)
        is_plain = self.frozen.views is None
        seen = features[own] if is_plain else self.frozen.seen_in(epoch, rows[own], device)
        return Batch(rows, numbers, on_device(self.coordinates_deg[rows].float(), device), features, seen)


@dataclass
class Queue:
    """The latest ``size`` places and the unit features of the photos taken there: negatives beyond the batch.

    Starts empty and grows; upstream's random unit vectors are places within a degree of (0, 0). The rows tell
    a photo from itself when it comes back in the next epoch.
    """

    size: int
    rows: torch.Tensor
    coordinates_deg: torch.Tensor
    unit_features: torch.Tensor

    @classmethod
    def empty(cls, size: int, dimension: int, device: torch.device | str = "cpu") -> Queue:
        """A queue for ``size`` places and features of ``dimension``."""
        rows = torch.empty(0, dtype=torch.long, device=device)
        return cls(size, rows, *(torch.empty(0, width, device=device) for width in (2, dimension)))

    def __len__(self) -> int:
        return len(self.coordinates_deg)

    @torch.no_grad()
    def push(self, rows: torch.Tensor, coordinates_deg: torch.Tensor, unit_features: torch.Tensor) -> None:
        """Add rows [B], coordinates [B, 2] and unit features [B, D]; the oldest beyond ``size`` leave."""
        if self.size == 0:
            return
        self.rows = torch.cat((self.rows, rows))[-self.size :]
        self.coordinates_deg = torch.cat((self.coordinates_deg, coordinates_deg))[-self.size :]
        self.unit_features = torch.cat((self.unit_features, unit_features))[-self.size :]


def _some(rows: np.ndarray, count: int | None) -> np.ndarray:
    """``count`` of ``rows``, ascending, the same for every seed; fewer are among the more."""
    if count is None:
        return rows
    return np.sort(rows[torch.randperm(len(rows), generator=generator(0, "photos")).numpy()[:count]])


def batches(rows: np.ndarray, size: int, order: torch.Generator) -> Iterator[np.ndarray]:
    """``rows`` in random order, ``size`` at a time; what is left over waits for another epoch's order."""
    shuffled = rows[torch.randperm(len(rows), generator=order).numpy()]
    for start in range(0, len(rows) - size + 1, size):
        yield shuffled[start : start + size]
