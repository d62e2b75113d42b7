"""Feature extraction from files, against the bare backbone on tensors that are in memory already."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Result, in_turn, row
from lib import settings
from lib.data import backbones, features
from lib.runs import Run

SIZES = (64, 128, 256, 512)
SIDE_PX = 128
SHARE = 0.9


def write_photos(folder: Path, count: int) -> list[str]:
    """``count`` JPEGs of smooth noise, as large as the satellite windows; their names."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(
            folder / f"{number:04d}.jpg", quality=90
        )
    return [f"{number:04d}.jpg" for number in range(count)]


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, numbers of photos; the reference is the bare backbone, so that a ratio of 1
    is all there is."""
    overrides = (
        "backbone.name=efficientnet-lite0", f"backbone.image_px={SIDE_PX}", "backbone.precision=float32",
        "backbone.storage=float32", "backbone.batch_size=64", "backbone.workers=0",
    )  # fmt: skip
    own = Run(settings.load("smoke", overrides), Path("."))
    backbone, rows = backbones.build(own.settings.backbone, own.device), []
    with tempfile.TemporaryDirectory() as folder:
        names = write_photos(Path(folder), max(sizes))
        photos = features.Photos(Path(folder), names, backbone)
        tensors = torch.from_numpy(np.stack([photos[number][0] for number in range(max(sizes))]))
        for size in sizes:

            def bare(size: int = size) -> np.ndarray:
                with torch.inference_mode():
                    parts = tensors[:size].to(memory_format=torch.channels_last).split(64)
                    encoded = [backbone.encode(one.to(own.device)).float().cpu() for one in parts]
                    return torch.cat(encoded).numpy()

            def ours(size: int = size) -> np.ndarray:
                given = (photos, backbone, own.settings.backbone, own.device, [range(size)])
                return next(features.encode(*given))[0]

            bare()
            found = in_turn(4, ours, bare)
            rows.append(row(size, *found, float(np.abs(found[0].value - found[1].value).max())))
    goal = "photos a second from JPEG files, at least 0.9 of the bare backbone's on tensors (ratio 0.9)"
    return Result("features", "photos", goal, all(one.ratio >= SHARE for one in rows), rows)
