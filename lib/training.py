"""The training loop: cached features in, a checkpoint and its history out. One loop for every strategy and data set."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import datasets, features, gallery, geodesy, negatives, ranks, semivariogram
from lib.model import GeoCLIP, Queue, initialise
from lib.negatives import Candidates, Strategy, contrastive_loss
from lib.runs import Run, generator, progress, writing

VALIDATION_RADII_KM = (25, 100, 200, 750, 2500)
WEIGHT_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CODE = ["geodesy", "features", "semivariogram", "negatives", "model", "gallery", "training", "runs:generator"]


class TrainingError(RuntimeError):
    """A training cannot start or go on; the message says why."""


class Batch(NamedTuple):
    """Manifest rows of a batch, int64 [B], and the epoch (from 1) in which they are seen."""

    epoch: int
    rows: np.ndarray


@dataclass(frozen=True)
class TrainingData:
    """What every strategy and seed shares, read once: rows, coordinates, features, gallery, curve."""

    frozen: features.Features
    train_rows: np.ndarray
    validation_rows: np.ndarray
    coordinates_deg: torch.Tensor
    gallery_deg: np.ndarray
    curve: semivariogram.Curve | None
    scale: float

    @classmethod
    def read(cls, run: Run, with_curve: bool) -> TrainingData:
        """Everything from the run's files; the semivariogram only where a strategy needs it.

        Raises:
            ArtefactError: notebook 01, or 03 where the curve is needed, has not run.
        """
        manifest, frozen = datasets.read(run), features.read(run)
        train_rows = datasets.manifest.rows_of(manifest, "train")
        curve = None
        if with_curve:
            fitted = semivariogram.load(run.require(run.semivariogram, "03_semivariogram"))
            curve = semivariogram.Curve(fitted).to(run.device)
        return cls(
            frozen,
            train_rows,
            datasets.manifest.rows_of(manifest, "validation"),
            torch.from_numpy(datasets.manifest.coordinates(manifest)),
            gallery.coordinates(run),
            curve,
            _input_scale(run, frozen, train_rows),
        )


def _input_scale(run: Run, frozen: features.Features, train_rows: np.ndarray) -> float:
    """1 for GeoCLIP's own protocol; for centred features their standard deviation, so that the head sees order 1."""
    if not run.settings.backbone.centred:
        return 1.0
    sample = frozen.rows(train_rows[:: max(1, len(train_rows) // 4_096)]) - frozen.mean
    return float(sample.std())


def train_all(run: Run, strategies: list[str]) -> list[str]:
    """Train each of ``strategies`` with each of the run's seeds, or reuse what is there; return the names trained.

    Of several processes each takes every k-th training.

    Raises:
        StrategyError: a strategy is unknown.
        TrainingError: see :func:`train`.
    """
    chosen = [negatives.get(name) for name in strategies]
    data = None

    def make(strategy: Strategy, seed: int) -> None:
        nonlocal data
        if data is None or (strategy.needs_curve and data.curve is None):
            data = TrainingData.read(run, with_curve=any(one.needs_curve for one in chosen))
        model, history = train(run, data, strategy, seed)
        model.save(run.checkpoint(strategy.name, seed), strategy=strategy.name, seed=seed, **_used(run, strategy))
        with writing(run.history(strategy.name, seed)) as aside:
            history.to_csv(aside, index=False)

    jobs = list(itertools.product(chosen, run.settings.training.seeds))
    for strategy, seed in jobs[ranks.rank() :: ranks.count()]:
        path = run.checkpoint(strategy.name, seed)
        run.produce(
            f"training-{path.stem}",
            make=partial(make, strategy, seed),
            inputs=_inputs(run, strategy),
            outputs=[path, run.history(strategy.name, seed)],
            settings=_used(run, strategy) | {"strategy": strategy.name, "seed": seed},
            code=CODE,
            by="this rank",
        )
    return strategies


def _inputs(run: Run, strategy: Strategy) -> list[Path]:
    """Files that a training with ``strategy`` reads."""
    inputs = [run.require(path, "01_data_preparation") for path in (run.manifest, run.features)]
    if run.settings.backbone.views > 1:
        inputs.append(run.require(run.views, "01_data_preparation"))
    if strategy.needs_curve:
        inputs.append(run.require(run.semivariogram, "03_semivariogram"))
    return inputs + gallery.input_files(run)


def _used(run: Run, strategy: Strategy) -> dict:
    """Settings that one training depends on: not the other strategies and seeds, not what the strategy never reads."""
    unread = {"strategies", "seeds", "precision", *({"alpha", "beta"} - set(strategy.parameters))}
    training = json.loads(run.settings.training.model_dump_json(exclude=unread))
    evaluation = run.settings.evaluation
    return {
        "training": training,
        "centred": run.settings.backbone.centred,
        "gallery": [evaluation.gallery, evaluation.lattice_km if evaluation.gallery == "lattice" else None],
        "arithmetic": run.arithmetic(run.settings.training.precision),
    }


def train(run: Run, data: TrainingData, strategy: Strategy, seed: int) -> tuple[GeoCLIP, pd.DataFrame]:
    """One training: the model after the last epoch, and a row an epoch of its history.

    Weights, batches and noise are drawn from generators of their own, seeded by ``seed`` alone, so that strategies with
    the same seed see the same weights, batches and noise.

    Raises:
        TrainingError: the loss is not finite; the message names epoch and step.
    """
    settings, device = run.settings.training, run.device
    model = initialise(seed, data.frozen.mean, data.scale, settings).to(device)
    queue = Queue.empty(settings.queue_size, data.frozen.dimension, device)
    batch_size = min(settings.batch_size, len(data.train_rows))
    steps = len(data.train_rows) // batch_size
    optimizer, schedule = _optimizer(model, run, steps)
    noise, order = generator(seed, "noise"), generator(seed, "batches")
    history = []
    bar = progress(range(1, settings.epochs + 1), f"{strategy.name}, seed {seed}", settings.epochs)
    for epoch in bar:
        losses, effect = [], None
        for step, rows in enumerate(_batches(data.train_rows, batch_size, order)):
            loss, effect = _loss(model, queue, data, Batch(epoch, rows), strategy, run, noise)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"{strategy.name}, seed {seed}: the loss is {loss.item()} at epoch {epoch}, step {step}; "
                    "lower training.learning_rate or training.beta"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            losses.append(loss.detach())
        row = {"epoch": epoch, "steps": epoch * steps, "loss": torch.stack(losses).mean().item()}
        row |= {"learning_rate": rate, "temperature": math.exp(-model.logit_scale.item())}
        if epoch % settings.validate_every == 0 or epoch == settings.epochs:
            with run.autocast(settings.precision):
                row |= validate(model, data, device)
            row |= _weight_statistics(effect)
        history.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}")
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise TrainingError(
            f"{strategy.name}, seed {seed}: weights are not finite after epoch {epoch}, step {step}; "
            "lower training.learning_rate"
        )
    return model.eval(), pd.DataFrame(history)


def _batches(rows: np.ndarray, size: int, order: torch.Generator) -> Iterator[np.ndarray]:
    """Rows of an epoch in random order, ``size`` at a time; what is left over waits for another epoch's order."""
    shuffled = rows[torch.randperm(len(rows), generator=order).numpy()]
    for start in range(0, len(rows) - size + 1, size):
        yield shuffled[start : start + size]


def _optimizer(
    model: GeoCLIP, run: Run, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer, and a schedule that is stepped once a batch; ``steps`` batches an epoch."""
    settings = run.settings.training
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    optimizer = kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    if settings.schedule == "one_cycle":
        total = steps * settings.epochs
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=total + 1)
    decay = settings.learning_rate_decay if settings.schedule == "exponential" else 1.0
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay ** (step // steps))


def _loss(
    model: GeoCLIP,
    queue: Queue,
    data: TrainingData,
    batch: Batch,
    strategy: Strategy,
    run: Run,
    noise: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss of ``batch``, and the effect of its weights; the batch then joins the queue.

    The head sees a view of each photo; dissimilarities are of the plain views.
    """
    settings, device, rows = run.settings.training, run.device, batch.rows
    unit = data.frozen.unit(rows).to(device)
    photos = data.frozen.seen_in(batch.epoch, rows).to(device)
    places = data.coordinates_deg[rows].float().to(device)
    noisy = [geodesy.jitter(places, settings.batch_noise_m, noise)]
    if len(queue):
        noisy.append(geodesy.jitter(queue.coordinates_deg, settings.queue_noise_m, noise))
    with run.autocast(settings.precision):
        logits = model.logits(model.embed_photos(photos), model.embed_places(torch.cat(noisy)))
    numbers = torch.from_numpy(rows).to(device)
    itself = torch.nn.functional.pad(numbers[:, None] == queue.rows, (len(rows), 0))
    logits = logits.masked_fill(itself, -math.inf)  # a photo that is still queued from the last epoch is no negative
    with torch.no_grad():
        reweighting = strategy.reweight(
            Candidates(
                logits.detach(),
                unit,
                torch.cat((unit, queue.unit_features)),
                places,
                torch.cat((places, queue.coordinates_deg)),
                data.curve,
                settings.alpha,
                settings.beta,
            )
        )
    queue.push(numbers, places, unit)
    return contrastive_loss(logits, reweighting), reweighting.effect()


@torch.inference_mode()
def validate(model: GeoCLIP, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Accuracy within each of ``VALIDATION_RADII_KM`` and the median error on the validation split."""
    model.eval()
    embedded = gallery.embed(model, data.gallery_deg, device)
    found = gallery.retrieve(model, data.frozen.rows(data.validation_rows), embedded)
    model.train()
    error = geodesy.distance_km(data.gallery_deg[found], data.coordinates_deg[data.validation_rows].numpy())
    accuracy = {f"validation_acc_{radius}km": float((error <= radius).mean()) for radius in VALIDATION_RADII_KM}
    return accuracy | {"validation_median_km": float(np.median(error))}


def _weight_statistics(effect: torch.Tensor | None) -> dict[str, float]:
    """Quantiles of log w over the last batch's negatives, and the shares that are emphasized and damped."""
    if effect is None:
        return {}
    positive = torch.eye(*effect.shape, dtype=torch.bool, device=effect.device)
    values = effect[~positive].float()
    chosen = values[:: max(1, len(values) // 1_000_000)]
    quantiles = torch.quantile(chosen, torch.tensor(WEIGHT_QUANTILES, device=values.device)).tolist()
    named = {f"log_weight_q{round(100 * q):02d}": value for q, value in zip(WEIGHT_QUANTILES, quantiles, strict=True)}
    return named | {"emphasized": (values > 0).float().mean().item(), "damped": (values < 0).float().mean().item()}


def histories(run: Run, strategies: list[str]) -> pd.DataFrame:
    """Histories of all seeds of ``strategies``, with columns strategy and seed."""
    frames = [
        pd.read_csv(run.require(run.history(name, seed), "04_regularized_training")).assign(strategy=name, seed=seed)
        for name in strategies
        for seed in run.settings.training.seeds
    ]
    return pd.concat(frames, ignore_index=True)
