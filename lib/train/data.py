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
            said = "no rising curve beats a constant here; leave strategies that read the curve out of"
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
    a photo from itself when it comes back in the next epoch. It lies in one piece, the oldest first, in
    buffers of twice ``size``: it is copied to their beginning once in a while, not at every push.
    """

    size: int
    buffers: tuple[torch.Tensor, ...]
    stop: int = 0

    @classmethod
    def empty(cls, size: int, dimension: int, device: torch.device | str = "cpu") -> Queue:
        """A queue for ``size`` places and features of ``dimension``."""
        rows = torch.empty(2 * size, dtype=torch.long, device=device)
        return cls(size, (rows, *(torch.empty(2 * size, width, device=device) for width in (2, dimension))))

    def parts(self) -> list[torch.Tensor]:
        """Rows [Q], coordinates [Q, 2] and unit features [Q, D], the oldest first; views until a push."""
        return [buffer[max(0, self.stop - self.size) : self.stop] for buffer in self.buffers]

    def __len__(self) -> int:
        return min(self.stop, self.size)

    @torch.no_grad()
    def push(self, *new: torch.Tensor) -> None:
        """Add rows [B], coordinates [B, 2] and unit features [B, D]; the oldest beyond ``size`` leave."""
        count = min(len(new[0]), self.size)
        start = self.stop if self.stop + count <= 2 * self.size else self.size - count
        for buffer, values in zip(self.buffers, new, strict=True):
            if start < self.stop:  # the buffer is full; what moves does not overlap: it is ``size`` at most
                buffer[:start] = buffer[self.stop - start : self.stop]
            buffer[start : start + count] = values[len(values) - count :]
        self.stop = start + count


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
