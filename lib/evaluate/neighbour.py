"""A baseline without training: each photo is placed where the most alike training photo was taken.

Features are centred and whitened: projected onto the first k principal components of the training photos, and
divided by each component's standard deviation. Two photos are as alike as the cosine of what results.
Validation chooses k. Source: Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the
benefit of PCA and whitening", ECCV 2012.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lib.data.features import Features
from lib.data.manifest import coordinates, rows_of
from lib.evaluate.intervals import NEAREST_NEIGHBOUR
from lib.method.geodesy import distance_km
from lib.runs.machine import note
from lib.train.gallery import GALLERY_BLOCK, most_similar
from lib.train.metrics import CHOICE_KM

COMPONENTS = (64, 128, 256, 512)
"""Numbers of components that are tried, besides all."""
LEAST_VARIANCE = 1e-10
"""Components with a smaller share of the first one's variance are rounding errors, and left out."""


def fit(frozen: Features, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] of the photos ``rows`` [n], n > 1, and K principal directions [D, K], largest first, each
    divided by its standard deviation. Reads the photos twice, in blocks, and adds up in float64."""
    blocks = _blocks(rows)
    mean = sum(frozen.rows(block, device).double().sum(0) for block in blocks) / len(rows)
    covariance = mean.new_zeros(len(mean), len(mean))
    for block in blocks:
        deviation = frozen.rows(block, device).double() - mean
        covariance += deviation.T @ deviation
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many short steps: on busy cores threads wait for each other, ten times as long
    variance, directions = (part.flip(-1) for part in torch.linalg.eigh(covariance / (len(rows) - 1)))
    torch.set_num_threads(threads)
    count = min(len(rows) - 1, int((variance > LEAST_VARIANCE * variance[0]).sum()))
    return mean.float(), (directions[:, :count] / variance[:count].sqrt()).float()


@torch.inference_mode()
def most_alike(
    frozen: Features, whitening: tuple[torch.Tensor, torch.Tensor], among: np.ndarray, rows: np.ndarray,
    components: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Which of the photos ``among`` [M] is most alike to each of ``rows`` [n], by the first k components for
    each k of ``components``: rows of the features, int64 [len(components), n], of equals the first; and the
    cosines, float32.

    Holds the whitened features of ``rows``, and a block of ``among``. Takes 2 n M k operations for each k,
    10^15 for OSV5M (210,000 and 5 million photos, k = 512): hours without a GPU.
    """
    (mean, directions), device = whitening, whitening[0].device
    photos = torch.cat([(frozen.rows(block, device) - mean) @ directions for block in _blocks(rows)])
    best = photos.new_full((len(components), len(rows)), -torch.inf)
    found = torch.zeros_like(best, dtype=torch.long)
    for block in _blocks(among):
        whitened = (frozen.rows(block, device) - mean) @ directions
        numbers = torch.from_numpy(block).to(device)
        for (i, k), start in itertools.product(enumerate(components), range(0, len(rows), GALLERY_BLOCK)):
            some = slice(start, start + GALLERY_BLOCK)
            cosine, row = most_similar(F.normalize(photos[some, :k]), F.normalize(whitened[:, :k]))
            found[i, some] = torch.where(cosine > best[i, some], numbers[row], found[i, some])
            best[i, some] = torch.maximum(cosine, best[i, some])
    return found.cpu().numpy(), best.cpu().numpy()


def predict(frozen: Features, manifest: pd.DataFrame, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Predicted places of the photos ``rows`` [n] of the manifest, float64 [n, 2] degrees."""
    places = coordinates(manifest)
    train, validation = rows_of(manifest, "train"), rows_of(manifest, "validation")
    whitening = fit(frozen, train, device)
    every = whitening[1].shape[1]
    components = [*(k for k in COMPONENTS if k < every), every]
    found, _ = most_alike(frozen, whitening, train, validation, components)
    near = distance_km(places[found], places[validation][None]) <= CHOICE_KM
    chosen = components[int(near.mean(1).argmax())]
    note(f"{NEAREST_NEIGHBOUR}: {chosen} of {every} principal components, chosen on validation")
    return places[most_alike(frozen, whitening, train, rows, [chosen])[0][0]]


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // GALLERY_BLOCK)))
