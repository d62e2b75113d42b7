"""The training loop: cached features in, a checkpoint and its history out. One loop for every strategy."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from lib.runs.machine import note, note_once, one_ahead
from lib.settings import Training
from lib.train import checkpoints, curve, gallery, shared
from lib.train.data import Batch, Queue, TrainingData, batches
from lib.train.metrics import CHOICE_KM, COMPARED_KM

WEIGHT_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LOOK_EVERY = 64
"""Steps after which losses are looked at; looking at each would let the processor wait for the GPU."""


@dataclass(frozen=True)
class Job:
    """One training, with the ``settings.training`` of ``run``; ``label`` names its files."""

    label: str
    strategy: Strategy
    seed: int
    run: Run

    @classmethod
    def of(
        cls, run: Run, name: str, seed: int, changes: Mapping[str, Any] | None = None, label: str = ""
    ) -> Job:
        """The training of ``name``, a strategy or variant of ``run``, with ``changes`` of its settings."""
        strategy, settings = run.settings.training.own(name)
        changed = run.settings.model_copy(update={"training": settings.changed(changes or {})})
        return cls(label or name, negatives.get(strategy), seed, replace(run, settings=changed))


def _reads_curve(job: Job) -> bool:
    """For its weights, or for the frequencies of its location encoder."""
    return job.strategy.needs_curve or job.run.settings.training.frequencies == "curve"


def strategies_of(run: Run) -> list[str]:
    """The run's strategies; where its curve does not rise, those that need none."""
    names = run.settings.training.strategies
    readers = [name for name in names if _reads_curve(Job.of(run, name, 0))]
    if not readers or curve.fit_run(run)[1].rises:
        return names
    return [name for name in names if name not in readers]


def train_all(run: Run, strategies: list[str]) -> list[str]:
    """Train ``strategies``, each with each of the run's seeds, or reuse what is there; return them."""
    both = itertools.product(strategies, run.settings.training.seeds)
    make_all([Job.of(run, name, seed) for name, seed in both])
    return strategies


def make_all(jobs: Sequence[Job]) -> None:
    """Make or reuse each of ``jobs``. Several processes deal them out, or share each."""
    alone = [job for job in jobs if not _is_shared(job.run)]
    for job in [*(job for job in jobs if _is_shared(job.run)), *alone[ranks.rank() :: ranks.count()]]:
        train_job(job)


def _is_shared(run: Run) -> bool:
    return run.settings.training.parallel == "batches" and ranks.count() > 1


def train_job(job: Job) -> None:
    """Train what ``job`` says, or reuse it: checkpoint and history. Errors are those of :func:`train`."""
    run, path = job.run, job.run.checkpoint(job.label, job.seed)
    features.extract(run)
    inputs = [run.manifest, run.features, *gallery.input_files(run)]
    inputs += [run.views] if run.settings.backbone.views > 1 else []
    if _reads_curve(job):
        curve.fit_run(run)
        inputs.append(run.semivariogram)
    cached(
        run, f"training-{path.stem}", lambda: _train_and_save(job), inputs=inputs,
        outputs=[path, run.history(job.label, job.seed)], settings=_used(job),
        code=[_train_and_save, job.strategy.reweight], scratch=_scratch(job), together=_is_shared(run),
    )  # fmt: skip


def _scratch(job: Job) -> Path:
    return job.run.checkpoint(job.label, job.seed).with_suffix(".unfinished")


def _train_and_save(job: Job) -> None:
    run, data = job.run, TrainingData.read(job.run, _reads_curve(job))
    model, history = train(run, data, job.strategy, job.seed, _scratch(job) / "state.safetensors")
    if not _is_shared(run) or ranks.rank() == 0:
        checkpoints.save(model, run.checkpoint(job.label, job.seed), **_used(job))
        with writing(run.history(job.label, job.seed)) as aside:
            history.to_csv(aside, index=False)


def _used(job: Job) -> dict[str, Any]:
    """Settings that one training depends on: not the other strategies and seeds, nor what it never reads."""
    settings, unread = job.run.settings, {"strategies", "seeds", "precision", "variants", "parallel"}
    unread |= set(negatives.PARAMETERS) - set(job.strategy.parameters)
    evaluation = settings.evaluation
    return {
        "training": json.loads(settings.training.model_dump_json(exclude=unread)),
        "centred": settings.backbone.centred,
        "gallery": [evaluation.gallery, evaluation.lattice_km if evaluation.gallery == "lattice" else None],
        "arithmetic": job.run.arithmetic(settings.training.precision),
        "strategy": job.strategy.name,
        "seed": job.seed,
    }


def train(
    run: Run, data: TrainingData, strategy: Strategy, seed: int, path: Path | None = None
) -> tuple[GeoCLIP, pd.DataFrame]:
    """One training: the model after the last epoch, and a row an epoch of its history.

    Weights, batches and noise have generators of their own, seeded by ``seed`` alone: strategies with the
    same seed see the same ones. So do processes that share the batches out; only embeddings and gradients
    travel, and the outcome is one process's, up to rounding. At ``path`` it saves its state after an epoch,
    see ``checkpoints.State``, and goes on from the one that it finds there, on a processor to the same bits.

    Raises:
        BundleError: the loss is not finite; the message names epoch, step and photos. Or a batch cannot be
            shared out, or processes that share it find other states.
    """
    settings, device, label = run.settings.training, run.device, f"{strategy.name}, seed {seed}"
    data = replace(data, frozen=data.frozen.near(device))
    model = _begun(data, settings, seed).to(device)
    data = data.shuffled(seed, device) if strategy.name == "shuffled" else data
    queue = Queue.empty(settings.queue_size, data.frozen.dimension, device)
    batch_size = _batch_size(settings, len(data.train_rows))
    steps = len(data.train_rows) // batch_size
    optimizer, schedule = _optimizer(model, settings, steps)
    noise, order = generator(seed, "noise"), generator(seed, "batches")
    parameters = {name: getattr(settings, name) for name in strategy.parameters}
    loss_of = SemivariogramLoss(data.curve, strategy, **parameters).to(device)
    state = checkpoints.State(model, optimizer, schedule, queue, (noise, order))
    begun = _resume(state, path, run, label)
    encoder, history = _shared_encoder(model, run, batch_size), state.history
    bar = progress(range(begun + 1, settings.epochs + 1), label)
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
                _refuse_not_finite(run, data, f"{label}: epoch {epoch}", taken, losses)
        mean = torch.stack(losses).mean()
        mean = (mean if encoder is None else shared.mean(mean)).item()
        row = {"epoch": epoch, "steps": epoch * steps, "loss": mean, "learning_rate": rate}
        row["temperature"] = math.exp(-model.logit_scale.item())
        is_due = epoch % settings.validate_every == 0 or epoch == settings.epochs
        if is_due and (encoder is None or ranks.rank() == 0):
            with run.autocast(settings.precision):
                row |= validate(model, data, device)
            row |= _weight_statistics(effect)
        history.append(row)
        bar.set_postfix(loss=f"{mean:.3f}")
        if path and epoch < settings.epochs and (encoder is None or ranks.rank() == 0):
            state.save(path)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        said = f"weights are not finite after the last step, of epoch {epoch}"
        raise BundleError(f"{label}: {said}; lower training.learning_rate")
    return model.eval(), pd.DataFrame(history)


def _batch_size(settings: Training, photos: int) -> int:
    """The settings' batch size, or all ``photos`` where they are fewer, which is told."""
    if photos < settings.batch_size and ranks.rank() == 0:
        said = f"there are {photos:,} training photos, and a batch is all of them"
        note_once(f"training.batch_size={settings.batch_size}: {said}")
    return min(settings.batch_size, photos)


def _resume(state: checkpoints.State, path: Path | None, run: Run, label: str) -> int:
    """Load into ``state`` what a killed training has left at ``path``; return how many epochs that were."""
    if path is not None:
        state.load(path)
    epochs = len(state.history)
    if _is_shared(run) and ranks.from_first(epochs) != epochs:
        said = f"{path}: the first process has read another state of {label} than process {ranks.rank()}"
        raise BundleError(f"{said}; delete this file, and the training starts over")
    if epochs and ranks.rank() == 0:
        note(f"{label}: goes on after epoch {epochs} of {run.settings.training.epochs}")
    return epochs


def _begun(data: TrainingData, settings: Training, seed: int) -> GeoCLIP:
    """The model before the first step, its location encoder with the frequencies of ``settings``."""
    model = checkpoints.initialise(seed, data.frozen.mean, data.scale, settings)
    if settings.frequencies == "geoclip":
        return model
    draw, own = generator(seed, "frequencies"), frequencies.of_capsules(model.location_encoder)
    if isinstance(settings.frequencies, list):
        drawn = frequencies.hand_set(settings.frequencies, len(own[0]), draw)
    else:
        count, most = sum(map(len, own)), frequencies.nyquist(data.coordinates_deg[data.train_rows].numpy())
        if settings.frequencies == "curve":
            drawn = frequencies.from_curve(data.curve, count, most, draw)
        else:
            drawn = frequencies.on_disc(count, settings.nyquist_share * most, draw)
    frequencies.set_in(model.location_encoder, drawn)
    return model


def capture(model: GeoCLIP, run: Run, photos: int, places: int) -> None:
    """Let ``model`` replay a CUDA graph for so many photos and ``places``: a batch and the full queue. Before
    the queue is full it runs as ever.

    Raises:
        BundleError: the run's device is no GPU.
    """
    device, plain = run.device, model.forward
    if device.type != "cuda":
        raise BundleError(f"training.cuda_graph needs a GPU, and device is {device.type}")
    samples = (torch.zeros(photos, len(model.feature_mean), device=device),
               torch.zeros(places, 2, device=device))  # fmt: skip
    with run.autocast(run.settings.training.precision):
        torch.set_autocast_cache_enabled(False)  # weights that were cast once would never change
        torch.cuda.make_graphed_callables(model, samples, allow_unused_input=True)  # of the temperature
    replayed = model.forward
    model.forward = lambda seen, noisy: (replayed if len(noisy) == places else plain)(seen, noisy)


def _refuse_not_finite(
    run: Run, data: TrainingData, where: str, taken: Sequence[np.ndarray], losses: list[torch.Tensor]
) -> None:
    """Raise a BundleError where one of the ``losses`` since the last look, of the batches ``taken``, is not
    finite. It names photos whose features are not: where features are centred, one of them spoils every batch
    through the mean."""
    seen = (len(losses) - 1) // LOOK_EVERY * LOOK_EVERY
    values = torch.stack(losses[seen:]).cpu()
    if torch.isfinite(values).all():
        return
    first = int((~torch.isfinite(values)).nonzero()[0])
    step = seen + first
    blocks = np.array_split(data.train_rows, max(1, len(data.train_rows) // 4_096))
    wrong = np.concatenate([rows[~np.isfinite(data.frozen.stored[rows]).all(1)] for rows in blocks])
    ids = features.photos(run, ["id"])["id"].astype(str)
    shown, what = (wrong, "these features are not finite") if len(wrong) else (taken[step], "of this batch")
    named = f"{what}: {', '.join(ids.iloc[shown[:5]])} ({len(shown):,} photos)"
    mend = "look at them, or lower training.learning_rate or training.beta"
    raise BundleError(f"{where}, step {step}: the loss is {values[first].item()}; {named}; {mend}")


def _shared_encoder(model: GeoCLIP, run: Run, batch_size: int) -> DistributedDataParallel | None:
    """``model`` as the ranks run it together, averaging gradients; None where each trains for itself, by a
    CUDA graph if the settings say so."""
    settings = run.settings.training
    if not _is_shared(run):
        if settings.cuda_graph:
            capture(model, run, batch_size, batch_size + settings.queue_size)
        return None
    if batch_size % ranks.count():
        said = f"a batch of {batch_size} cannot be shared out among {ranks.count()} processes"
        raise BundleError(f"{said}; set training.batch_size to a multiple")
    return DistributedDataParallel(model, broadcast_buffers=False)


def _share(rows: np.ndarray, encoder: DistributedDataParallel | None) -> slice:
    """Which photos of a batch this process encodes: all, but where ranks share it out."""
    part = len(rows) if encoder is None else len(rows) // ranks.count()
    return slice(0, part) if encoder is None else slice(ranks.rank() * part, (ranks.rank() + 1) * part)


def _encoded(
    model: GeoCLIP, encoder: DistributedDataParallel | None, photos: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of ``photos`` and ``places`` [M, 2]; each rank that shares the batch encodes a part."""
    if encoder is None:
        return model(photos, places)
    part = -(-len(places) // ranks.count())
    padded = torch.cat((places, places[:1].expand(part * ranks.count() - len(places), -1)))
    photos, embedded = encoder(photos, padded[ranks.rank() * part :][:part])
    return photos, shared.gather(embedded)[: len(places)]


def _optimizer(
    model: GeoCLIP, settings: Training, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer, and a schedule that is stepped once a batch; ``steps`` batches an epoch."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    rate, schedulers = settings.learning_rate, torch.optim.lr_scheduler
    optimizer = kind(model.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True)
    if settings.schedule == "one_cycle":
        total = steps * settings.epochs + 1
        return optimizer, schedulers.OneCycleLR(optimizer, rate, total_steps=total)
    decay = settings.learning_rate_decay if settings.schedule == "exponential" else 1.0
    return optimizer, schedulers.LambdaLR(optimizer, lambda step: decay ** (step // steps))


def loss_of_batch(
    model: GeoCLIP, queue: Queue, data: TrainingData, batch: Batch, loss_of: SemivariogramLoss, run: Run,
    noise: torch.Generator, encoder: DistributedDataParallel | None = None, done: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Loss of ``batch``, and the effect of its weights; the batch then joins the queue.

    The head sees a view of each photo; dissimilarities are of the plain views. Where ranks share the batch
    out (``encoder``), it is the loss of this one's photos against the places of all.
    """
    settings, numbers, places = run.settings.training, batch.numbers, batch.places_deg
    own, unit = _share(batch.rows, encoder), data.frozen.directions(batch.features)
    sigmas = settings.batch_noise_m, settings.queue_noise_m
    queued_rows, queued_places, queued_unit = queue.parts()
    noisy = sphere.jitter((places, queued_places), sigmas, noise)
    with run.autocast(settings.precision):
        logits = model.logits(*_encoded(model, encoder, batch.seen, noisy))
    itself = torch.nn.functional.pad(numbers[own, None] == queued_rows, (len(numbers), 0))
    logits = logits.masked_fill(itself, -math.inf)  # still queued from the last epoch: no negative of itself
    all_rows = torch.cat((numbers, queued_rows))
    all_unit = torch.cat((unit, queued_unit))
    all_places = torch.cat((places, queued_places))
    if own.start:  # photo i's own place belongs in column i
        order = torch.arange(len(all_rows), device=numbers.device)
        order[: len(numbers)] = order[: len(numbers)].roll(-own.start)
        logits, all_rows = logits[:, order], all_rows[order]
        all_unit, all_places = all_unit[order], all_places[order]
    partners = {} if data.partner_deg is None else {"partner_deg": data.partner_deg[all_rows]}
    reweighting = loss_of.reweighting(logits, all_places, all_unit, progress=done, **partners)
    queue.push(numbers, places, unit)
    return contrastive_loss(logits, reweighting), reweighting.effect()


@torch.inference_mode()
def validate(model: GeoCLIP, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Accuracy within each of ``COMPARED_KM`` and the median error on the validation split."""
    model.eval()
    embedded = gallery.embed(model, data.gallery_deg, device)
    _, found = gallery.retrieve(model, data.frozen.rows(data.validation_rows), embedded)
    model.train()
    truth = data.coordinates_deg[data.validation_rows].numpy()
    error = geodesy.distance_km(data.gallery_deg[found.numpy()], truth)
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
    shares = [share.float().mean().item() for share in (values > 0, values < 0)]
    return dict(zip([*names, "emphasized", "damped"], [*quantiles, *shares], strict=True))


def histories(run: Run, strategies: list[str]) -> pd.DataFrame:
    """Histories of all seeds of ``strategies``, which are trained; with columns strategy and seed."""
    train_all(run, strategies)
    both = itertools.product(strategies, run.settings.training.seeds)
    read = [pd.read_csv(run.history(name, seed)).assign(strategy=name, seed=seed) for name, seed in both]
    return pd.concat(read, ignore_index=True)


def check_trained(run: Run, strategy: str, seed: int) -> None:
    """Check that the run's settings train ``strategy`` with ``seed``. BundleError: they do not."""
    settings = run.settings.training
    for word, value, known in (("strategy", strategy, settings.strategies), ("seed", seed, settings.seeds)):
        if value not in known:
            raise BundleError(f"run {run.name} has no {word} {value}; it has {', '.join(map(str, known))}")


def best_strategy(run: Run) -> tuple[str, float]:
    """The strategy with the highest validation accuracy within 200 km after the last epoch, mean over seeds;
    and that mean. Of equals the first in the settings counts. Test splits have no part in it."""
    strategies, column = strategies_of(run), f"validation_acc_{CHOICE_KM}km"
    last = histories(run, strategies).groupby(["strategy", "seed"])[column].last()
    means = last.groupby("strategy").mean().reindex(strategies)
    return str(means.idxmax()), float(means.max())
