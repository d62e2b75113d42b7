"""The training loop: cached features in, a checkpoint and its history out. One loop for every strategy."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.parallel import DistributedDataParallel

from lib.data import features, sphere
from lib.data.draws import generator
from lib.method import frequencies, geodesy, negatives
from lib.method.errors import BundleError
from lib.method.loss import SemivariogramLoss, contrastive_loss
from lib.method.model import GeoCLIP
from lib.method.negatives import Strategy
from lib.runs import Run, cached, progress, ranks, writing
from lib.runs.machine import one_ahead
from lib.settings import Training
from lib.train import checkpoints, curve, gallery
from lib.train.data import Batch, Queue, TrainingData, batches
from lib.train.metrics import CHOICE_KM, COMPARED_KM

WEIGHT_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LOOK_EVERY = 64
"""Steps after which losses are looked at; looking at each would let the processor wait for the GPU."""


@dataclass(frozen=True)
class Job:
    """One training to be made or reused.

    Attributes:
        label: names its files; the strategy's own name where the run's settings are used as they are.
        strategy: a registered name.
        seed: of weights, batches and noise.
        run: whose ``settings.training`` are used, and in whose folder the files lie.
    """

    label: str
    strategy: str
    seed: int
    run: Run

    @classmethod
    def of(cls, run: Run, name: str, seed: int) -> Job:
        """The training that ``name`` of the run's strategies, or of their variants, stands for.

        Raises:
            BundleError: it stands for none.
        """
        strategy, training = run.settings.training.own(name)
        return cls(name, negatives.get(strategy).name, seed, _with(run, training))

    @classmethod
    def variant(cls, run: Run, label: str, name: str, seed: int, changes: Mapping[str, Any]) -> Job:
        """The training of :meth:`of`, with other settings of ``training``.

        Raises:
            ValidationError: ``changes`` are no settings of a training.
        """
        strategy, training = run.settings.training.own(name)
        return cls(label, negatives.get(strategy).name, seed, _with(run, training.changed(changes)))


def _with(run: Run, training: Training) -> Run:
    return replace(run, settings=run.settings.model_copy(update={"training": training}))


def strategies_of(run: Run) -> list[str]:
    """The run's strategies; where its curve does not rise, those that need none."""
    names, training = run.settings.training.strategies, run.settings.training
    own = {name: training.own(name) for name in names}
    readers = [name for name, (strategy, used) in own.items() if reads_curve(negatives.get(strategy), used)]
    if not readers or curve.fit_run(run)[1].rises:
        return names
    return [name for name in names if name not in readers]


def reads_curve(strategy: Strategy, settings: Training) -> bool:
    """Whether a training reads the curve: for its weights, or for the frequencies of its location encoder."""
    return strategy.needs_curve or settings.frequencies == "curve"


def train_all(run: Run, strategies: list[str]) -> list[str]:
    """Train each of ``strategies`` with each of the run's seeds, or reuse what is there; the names trained.

    Raises:
        BundleError: a strategy is unknown, or see :func:`train`.
    """
    both = itertools.product(strategies, run.settings.training.seeds)
    make_all([Job.of(run, name, seed) for name, seed in both])
    return strategies


def make_all(jobs: Sequence[Job]) -> None:
    """Make or reuse each of ``jobs``. Several processes deal them out, or share each."""
    for job in (one for one in jobs if _is_shared(one.run.settings.training)):
        train_job(job)
    alone = [one for one in jobs if not _is_shared(one.run.settings.training)]
    for job in alone[ranks.rank() :: ranks.count()]:
        train_job(job)


def _is_shared(settings: Training) -> bool:
    return settings.parallel == "batches" and ranks.count() > 1


def train_job(job: Job) -> None:
    """Train what ``job`` says, or reuse it: checkpoint and history.

    Raises:
        BundleError: its strategy is unknown, or see :func:`train`.
    """
    strategy, run = negatives.get(job.strategy), job.run
    features.extract(run)
    inputs = [run.manifest, run.features, *gallery.input_files(run)]
    inputs += [run.views] if run.settings.backbone.views > 1 else []
    if reads_curve(strategy, run.settings.training):
        curve.fit_run(run)
        inputs.append(run.semivariogram)
    path = run.checkpoint(job.label, job.seed)
    cached(
        run,
        f"training-{path.stem}",
        lambda: _train_and_save(job),
        inputs=inputs,
        outputs=[path, run.history(job.label, job.seed)],
        settings=_used(job),
        code=[_train_and_save, strategy.reweight],
        together=_is_shared(run.settings.training),
    )


def _train_and_save(job: Job) -> None:
    strategy, run = negatives.get(job.strategy), job.run
    data = TrainingData.read(run, reads_curve(strategy, run.settings.training))
    model, history = train(run, data, strategy, job.seed)
    if _is_shared(run.settings.training) and ranks.rank() > 0:
        return
    checkpoints.save(model, run.checkpoint(job.label, job.seed), **_used(job))
    with writing(run.history(job.label, job.seed)) as aside:
        history.to_csv(aside, index=False)


def _used(job: Job) -> dict[str, Any]:
    """Settings that one training depends on: not the other strategies and seeds, nor what it never reads."""
    strategy, settings = negatives.get(job.strategy), job.run.settings
    unread = {"strategies", "seeds", "precision", "variants", "parallel"}
    unread |= set(negatives.PARAMETERS) - set(strategy.parameters)
    evaluation = settings.evaluation
    return {
        "training": json.loads(settings.training.model_dump_json(exclude=unread)),
        "centred": settings.backbone.centred,
        "gallery": [evaluation.gallery, evaluation.lattice_km if evaluation.gallery == "lattice" else None],
        "arithmetic": job.run.arithmetic(settings.training.precision),
        "strategy": strategy.name,
        "seed": job.seed,
    }


def train(run: Run, data: TrainingData, strategy: Strategy, seed: int) -> tuple[GeoCLIP, pd.DataFrame]:
    """One training: the model after the last epoch, and a row an epoch of its history.

    Weights, batches and noise have generators of their own, seeded by ``seed`` alone: strategies with the
    same seed see the same ones. So do processes that share the batches out; only embeddings and gradients
    travel, and the outcome is one process's, up to rounding.

    Raises:
        BundleError: the loss is not finite; the message names epoch and step. Or a batch cannot be shared
            out.
    """
    settings, device = run.settings.training, run.device
    data = replace(data, frozen=data.frozen.near(device))
    model = checkpoints.initialise(seed, data.frozen.mean, data.scale, settings)
    if settings.frequencies != "geoclip":
        frequencies.set_in(model.location_encoder, _frequencies(model, data, settings, seed))
    model = model.to(device)
    data = data.shuffled(seed, device) if strategy.name == "shuffled" else data
    queue = Queue.empty(settings.queue_size, data.frozen.dimension, device)
    batch_size = min(settings.batch_size, len(data.train_rows))
    steps, encoder = len(data.train_rows) // batch_size, _shared_encoder(model, settings, batch_size)
    optimizer, schedule = _optimizer(model, run, steps)
    noise, order = generator(seed, "noise"), generator(seed, "batches")
    parameters = {name: getattr(settings, name) for name in strategy.parameters}
    loss_of = SemivariogramLoss(data.curve, strategy, **parameters).to(device)
    history = []
    label = f"{strategy.name}, seed {seed}"
    bar = progress(range(1, settings.epochs + 1), label, settings.epochs)
    for epoch in bar:
        losses, taken, effect = [], list(batches(data.train_rows, batch_size, order)), None
        made = (data.batch(epoch, rows, _share(rows, encoder), device) for rows in taken)
        for batch in one_ahead(made) if device.type == "cuda" else made:
            done = ((epoch - 1) * steps + len(losses)) / (settings.epochs * steps)
            loss, effect = loss_of_batch(model, queue, data, batch, loss_of, run, noise, encoder, done)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            losses.append(loss.detach())
            if len(losses) % LOOK_EVERY == 0 or len(losses) == steps:
                _refuse_not_finite(run, data, label, f"epoch {epoch}", taken, losses)
        row = {"epoch": epoch, "steps": epoch * steps, "loss": _mean_loss(losses, encoder is not None)}
        row |= {"learning_rate": rate, "temperature": math.exp(-model.logit_scale.item())}
        is_due = epoch % settings.validate_every == 0 or epoch == settings.epochs
        if is_due and (encoder is None or ranks.rank() == 0):
            with run.autocast(settings.precision):
                row |= validate(model, data, device)
            row |= _weight_statistics(effect)
        history.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}")
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise BundleError(
            f"{label}: weights are not finite after the last step, of epoch {epoch}; "
            "lower training.learning_rate"
        )
    return model.eval(), pd.DataFrame(history)


def _refuse_not_finite(
    run: Run, data: TrainingData, training: str, where: str, taken: Sequence[np.ndarray], losses: list
) -> None:
    """Check the losses of an epoch so far, of the batches ``taken``.

    Raises:
        BundleError: one is not finite. The message names photos whose features are not finite: where features
            are centred, one of them spoils every batch through the mean.
    """
    values = torch.stack(losses).cpu()
    if torch.isfinite(values).all():
        return
    step = int((~torch.isfinite(values)).nonzero()[0])
    blocks = np.array_split(data.train_rows, max(1, len(data.train_rows) // 4_096))
    wrong = np.concatenate([rows[~np.isfinite(data.frozen.stored[rows]).all(1)] for rows in blocks])
    ids = features.photos(run, ["id"])["id"].astype(str)
    shown, what = (wrong, "these features are not finite") if len(wrong) else (taken[step], "of this batch")
    raise BundleError(
        f"{training}: the loss is {values[step].item()} at {where}, step {step}; {what}: "
        f"{', '.join(ids.iloc[shown[:5]])} ({len(shown):,} photos); look at them, or lower "
        "training.learning_rate or training.beta"
    )


def _shared_encoder(model: GeoCLIP, settings: Training, batch_size: int) -> DistributedDataParallel | None:
    """``model`` as the ranks run it together, averaging gradients; None where each trains for itself."""
    if not _is_shared(settings):
        return None
    if batch_size % ranks.count():
        raise BundleError(
            f"a batch of {batch_size} cannot be shared out among {ranks.count()} processes; "
            "set training.batch_size to a multiple"
        )
    return DistributedDataParallel(model, broadcast_buffers=False)


def _share(rows: np.ndarray, encoder: DistributedDataParallel | None) -> slice:
    """Which photos of a batch this process encodes: all, but where ranks share it out."""
    if encoder is None:
        return slice(0, len(rows))
    part = len(rows) // ranks.count()
    return slice(ranks.rank() * part, (ranks.rank() + 1) * part)


def _mean_loss(losses: list[torch.Tensor], shared: bool) -> float:
    mean = torch.stack(losses).mean().item()
    return float(ranks.total(np.array(mean))) / ranks.count() if shared else mean


def _encoded(
    model: GeoCLIP, encoder: DistributedDataParallel | None, photos: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of ``photos`` and ``places`` [M, 2]; each rank that shares the batch encodes a part."""
    if encoder is None:
        return model(photos, places)
    part = -(-len(places) // ranks.count())
    padded = torch.cat((places, places[:1].expand(part * ranks.count() - len(places), -1)))
    photos, embedded = encoder(photos, padded[ranks.rank() * part :][:part])
    return photos, ranks.gather(embedded)[: len(places)]


def _frequencies(model: GeoCLIP, data: TrainingData, settings: Training, seed: int) -> torch.Tensor:
    """Other frequencies than GeoCLIP's for the location encoder, [F, 2]."""
    draw, own = generator(seed, "frequencies"), frequencies.of_capsules(model.location_encoder)
    if settings.frequencies == "curve":
        most = frequencies.nyquist(data.coordinates_deg[data.train_rows].numpy())
        return frequencies.from_curve(data.curve, sum(map(len, own)), most, draw)
    return frequencies.hand_set(settings.frequencies, len(own[0]), draw)


def _optimizer(
    model: GeoCLIP, run: Run, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer, and a schedule that is stepped once a batch; ``steps`` batches an epoch."""
    settings = run.settings.training
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    rate, schedulers = settings.learning_rate, torch.optim.lr_scheduler
    optimizer = kind(model.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True)
    if settings.schedule == "one_cycle":
        total = steps * settings.epochs + 1
        return optimizer, schedulers.OneCycleLR(optimizer, rate, total_steps=total)
    decay = settings.learning_rate_decay if settings.schedule == "exponential" else 1.0
    return optimizer, schedulers.LambdaLR(optimizer, lambda step: decay ** (step // steps))


def loss_of_batch(
    model: GeoCLIP,
    queue: Queue,
    data: TrainingData,
    batch: Batch,
    loss_of: SemivariogramLoss,
    run: Run,
    noise: torch.Generator,
    encoder: DistributedDataParallel | None = None,
    done: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss of ``batch``, and the effect of its weights; the batch then joins the queue.

    The head sees a view of each photo; dissimilarities are of the plain views. Where ranks share the batch
    out (``encoder``), it is the loss of this one's photos against the places of all.
    """
    settings, device, rows = run.settings.training, batch.features.device, batch.rows
    own, numbers, places = _share(rows, encoder), batch.numbers, batch.places_deg
    unit = data.frozen.directions(batch.features)
    sigmas = settings.batch_noise_m, settings.queue_noise_m
    noisy = sphere.jitter((places, queue.coordinates_deg), sigmas, noise)
    with run.autocast(settings.precision):
        photos, embedded = _encoded(model, encoder, batch.seen, noisy)
        logits = model.logits(photos, embedded)
    itself = torch.nn.functional.pad(numbers[own, None] == queue.rows, (len(rows), 0))
    logits = logits.masked_fill(itself, -math.inf)  # still queued from the last epoch: no negative of itself
    all_unit = torch.cat((unit, queue.unit_features))
    all_places = torch.cat((places, queue.coordinates_deg))
    if own.start:  # photo i's own place belongs in column i
        order = torch.arange(logits.shape[1], device=device)
        order[: len(rows)] = order[: len(rows)].roll(-own.start)
        logits, all_unit, all_places = logits[:, order], all_unit[order], all_places[order]
    more = {"progress": done}
    if data.partner_deg is not None:
        all_rows = torch.cat((numbers, queue.rows))
        more["partner_deg"] = data.partner_deg[all_rows[order] if own.start else all_rows]
    reweighting = loss_of.reweighting(logits, all_places, all_unit, **more)
    queue.push(numbers, places, unit)
    return contrastive_loss(logits, reweighting), reweighting.effect()


@torch.inference_mode()
def validate(model: GeoCLIP, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Accuracy within each of ``COMPARED_KM`` and the median error on the validation split."""
    model.eval()
    embedded = gallery.embed(model, data.gallery_deg, device)
    _, found = gallery.retrieve(model, data.frozen.rows(data.validation_rows), embedded)
    model.train()
    error = geodesy.distance_km(
        data.gallery_deg[found.numpy()], data.coordinates_deg[data.validation_rows].numpy()
    )
    accuracy = {f"validation_acc_{radius}km": float((error <= radius).mean()) for radius in COMPARED_KM}
    return accuracy | {"validation_median_km": float(np.median(error))}


def _weight_statistics(effect: torch.Tensor | None) -> dict[str, float]:
    """Quantiles of log w over the last batch's negatives, and the shares that are emphasized and damped."""
    if effect is None:
        return {}
    positive = torch.eye(*effect.shape, dtype=torch.bool, device=effect.device)
    values = effect[~positive].float()
    chosen = values[:: max(1, len(values) // 1_000_000)]
    quantiles = torch.quantile(chosen, torch.tensor(WEIGHT_QUANTILES, device=values.device)).tolist()
    names = [f"log_weight_q{round(100 * quantile):02d}" for quantile in WEIGHT_QUANTILES]
    shares = {"emphasized": (values > 0), "damped": (values < 0)}
    return dict(zip(names, quantiles, strict=True)) | {
        name: share.float().mean().item() for name, share in shares.items()
    }


def histories(run: Run, strategies: list[str]) -> pd.DataFrame:
    """Histories of all seeds of ``strategies``, trained where they are not there; with columns strategy, seed."""
    train_all(run, strategies)
    both = itertools.product(strategies, run.settings.training.seeds)
    return pd.concat(
        [pd.read_csv(run.history(name, seed)).assign(strategy=name, seed=seed) for name, seed in both],
        ignore_index=True,
    )


def best_strategy(run: Run) -> tuple[str, float]:
    """The strategy with the highest validation accuracy within 200 km, mean over seeds; and that mean.

    It is taken after the last epoch; of equals, the first in the settings counts. Test splits have no part in
    it.
    """
    strategies, column = strategies_of(run), f"validation_acc_{CHOICE_KM}km"
    last = histories(run, strategies).groupby(["strategy", "seed"])[column].last()
    means = last.groupby("strategy").mean().reindex(strategies)
    return str(means.idxmax()), float(means.max())
