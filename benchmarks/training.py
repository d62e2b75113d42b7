"""A training step on cached features, against one that sends the photos through the frozen backbone again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Result, in_turn, row
from benchmarks.reweighting import CURVE, step
from benchmarks.semivariogram import world
from lib import backbones, features, negatives, settings
from lib.runs import Run
from lib.semivariogram import Curve
from lib.training import TrainingData

SIZES = (64, 128, 256, 512)
OVERRIDES = ("backbone.name=efficientnet-lite0", "backbone.image_px=128", "backbone.precision=float32", "training.precision=float32",
             "training.batch_noise_m=0")  # fmt: skip


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, photos in a batch, with ``decayed`` and no queue; the backbone is EfficientNet-Lite0 at 128 px."""
    first = Run(settings.load("smoke", OVERRIDES), Path("."))
    device, backbone = first.device, backbones.build(first.settings.backbone, first.device)
    _, places = world(max(sizes), 8)
    images = torch.randn(max(sizes), 3, 128, 128, generator=torch.Generator().manual_seed(0))

    def encode(part: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return backbone.encode(part.to(device, memory_format=torch.channels_last)).float().cpu().numpy()

    cached = np.concatenate([encode(part) for part in images.split(64)])
    frozen, numbers = features.Features(cached, torch.zeros(cached.shape[1])), np.arange(max(sizes))
    of = TrainingData(frozen, numbers, numbers[:0], torch.from_numpy(places), places, Curve(CURVE), 1.0)
    rows = []
    for size in sizes:
        own = Run(settings.load("smoke", (*OVERRIDES, f"training.batch_size={size}")), Path("."))
        on_cached = step(own, of, 0, negatives.get("decayed"))

        def again(size: int = size, on_cached: Callable[[], float] = on_cached) -> float:
            cached[:size] = encode(images[:size])
            return on_cached()

        again()
        ours, reference = in_turn(3, on_cached, again)
        rows.append(row(size, ours, reference, abs(ours.value - reference.value)))
    goal = "a step on cached features is faster than one that runs the frozen backbone again"
    return Result("training", "photos in a batch", goal, all(one.ratio > 1.0 for one in rows), rows)
