"""A training step by what makes it fast, each against the step without it: cached features, bfloat16, a fused
optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import reweighting
from benchmarks.harness import Result, Row, in_turn, row
from benchmarks.reweighting import CURVE
from benchmarks.semivariogram import world
from lib import settings
from lib.data import backbones, features
from lib.method import negatives
from lib.runs import Run
from lib.runs.machine import has_native_bfloat16
from lib.train.checkpoints import initialise
from lib.train.training import TrainingData

SIZES = (64, 128, 256, 512)
OVERRIDES = (
    "backbone.name=efficientnet-lite0", "backbone.image_px=128", "backbone.precision=float32",
    "training.precision=float32", "training.batch_noise_m=0", "training.queue_noise_m=0",
)  # fmt: skip


def _run(size: int, *overrides: str) -> Run:
    return Run(settings.load("smoke", (*OVERRIDES, f"training.batch_size={size}", *overrides)), Path("."))


def cached_features(sizes: Sequence[int]) -> list[Row]:
    """A step on cached features, against one that runs the frozen backbone, EfficientNet-Lite0 at 128 px,
    again."""
    first = _run(max(sizes))
    device, backbone = first.device, backbones.build(first.settings.backbone, first.device)
    _, places = world(max(sizes), 8)
    images = torch.randn(max(sizes), 3, 128, 128, generator=torch.Generator().manual_seed(0))

    def encode(part: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return backbone.encode(part.to(device, memory_format=torch.channels_last)).float().cpu().numpy()

    cached = np.concatenate([encode(part) for part in images.split(64)])
    frozen, numbers = features.Features(cached, torch.zeros(cached.shape[1])), np.arange(max(sizes))
    of = TrainingData(frozen, numbers, numbers[:0], torch.from_numpy(places), places, CURVE, 1.0)
    rows = []
    for size in sizes:
        on_cached = reweighting.step(_run(size), of, 0, negatives.get("decayed"))

        def again(size: int = size, on_cached: Callable[[], float] = on_cached) -> float:
            cached[:size] = encode(images[:size])
            return on_cached()

        again()
        ours, reference = in_turn(3, on_cached, again)
        rows.append(row(size, ours, reference, abs(ours.value - reference.value), part="cached features"))
    return rows


def bfloat16(sizes: Sequence[int]) -> list[Row]:
    """A step in bfloat16, against float32; none where the processor has none."""
    if not has_native_bfloat16(_run(max(sizes)).device):
        return []
    of, rows = reweighting.data(max(sizes)), []
    for size in sizes:
        calls = [
            reweighting.step(_run(size, f"training.precision={how}"), of, 0, negatives.get("decayed"))
            for how in ("bfloat16", "float32")
        ]
        for call in calls:
            call()
        ours, reference = in_turn(4, *calls)
        rows.append(row(size, ours, reference, abs(ours.value - reference.value), part="bfloat16"))
    return rows


def fused_optimizer() -> Row:
    """One kernel for all of AdamW's work, against one a parameter and operation; 0 photos, as their number
    has no part in it."""
    own, models = _run(64), []
    for _ in range(2):
        model = initialise(0, torch.zeros(768), 1.0, own.settings.training)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        models.append(model)

    def step(model: torch.nn.Module, fused: bool) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
        optimizer.step()
        return optimizer.step

    ours, reference = in_turn(5, step(models[0], True), step(models[1], False))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    apart = max((one - two).abs().max().item() for one, two in pairs)
    return row(0, ours, reference, apart, part="fused optimizer")


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, photos in a batch."""
    rows = [*cached_features(sizes), *bfloat16(sizes), fused_optimizer()]
    largest = [one for one in rows if one.size in {0, max(sizes)}]
    goal = "cached features, bfloat16 and a fused optimizer: each ratio above 1 at the largest batch"
    return Result("training", "photos in a batch", goal, all(one.ratio > 1.0 for one in largest), rows)
