"""Top five of a gallery of 100,000 places, with errors, for N photos: against photo by photo, and against the
bare matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import reference
from benchmarks.harness import Result, in_turn, measure, row
from lib.data.sphere import uniform_on_sphere
from lib.method.geodesy import distance_km
from lib.train import gallery

SIZES = (125, 250, 500, 10_000)
PLAIN_UP_TO = 500
PLACES = 100_000
TIMES, FLOOR = 100.0, 1.3


class Embedded:
    """Stands in for the image head: photos that are embeddings already."""

    def embed_photos(self, photos: torch.Tensor) -> torch.Tensor:
        """``photos``."""
        return photos


def products(photos: torch.Tensor, places: torch.Tensor) -> None:
    """The floor: similarities of all photos and places, in the same blocks, thrown away."""
    for part in photos.split(1_024):
        for block in places.split(gallery.GALLERY_BLOCK):
            part @ block.T


def run(sizes: Sequence[int], places: int = PLACES) -> Result:
    """Measure each of ``sizes``, numbers of photos."""
    generator = np.random.default_rng(0)

    def unit(count: int) -> torch.Tensor:
        return F.normalize(torch.from_numpy(generator.standard_normal((count, 512), dtype=np.float32)), dim=1)

    embedded = unit(places)
    gallery_deg, truth_deg = uniform_on_sphere(places, generator), uniform_on_sphere(max(sizes), generator)
    everyone, rows = unit(max(sizes)), []
    for count in sizes:
        photos, truth = everyone[:count], truth_deg[:count]

        def found(photos: torch.Tensor = photos, truth: np.ndarray = truth) -> tuple[np.ndarray, np.ndarray]:
            top = gallery.retrieve(Embedded(), photos, embedded)[1].numpy()
            return top, distance_km(truth, gallery_deg[top])

        ours, floor = in_turn(2 if count > PLAIN_UP_TO else 5, found, partial(products, photos, embedded))
        plain, difference = None, None
        if count <= PLAIN_UP_TO:
            plain = measure(partial(reference.retrieve, photos.numpy(), embedded.numpy(), truth, gallery_deg))
            np.testing.assert_array_equal(plain.value[0], ours.value[0], "other places were found")
            difference = float(np.abs(plain.value[1] - ours.value[1]).max())
        rows.append(row(count, ours, plain, difference, floor))
    compared = [one for one in rows if one.ratio is not None]
    met = compared[-1].ratio >= TIMES and rows[-1].floor_ratio <= FLOOR
    goal = "the best of 100,000: 100 times as fast as photo by photo; 10,000 photos 1.3 x the bare products"
    return Result("retrieval", "photos", goal, met, rows)
