"""From gallery scores to one answer other than the best match: smoothed by the curve, a spherical median, a
radius that holds.

Everything starts from a photo's k best gallery places and their probabilities, a softmax at a temperature.
What is free (temperature, power of the correlation) is chosen on the validation split; radii are calibrated
there too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.data import datasets, features
from lib.data.sphere import coordinates_of
from lib.evaluate import evaluation
from lib.method.geodesy import EARTH_RADIUS_KM, chord_to_rad, distance_km, rad_to_km, unit_vectors
from lib.method.model import GeoCLIP
from lib.method.semivariogram import Curve, FittedSemivariogram
from lib.runs import Run, progress, writing
from lib.train import checkpoints, gallery
from lib.train.metrics import COMPARED_KM

BEST = 64
"""Gallery places that an answer is made of."""
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
POWERS = (2.0, 8.0, 32.0)
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FARTHEST_KM = math.pi * EARTH_RADIUS_KM


@dataclass(frozen=True)
class Candidates:
    """The k best gallery places of N photos, best first.

    Attributes:
        logits: [N, k] float32.
        places_deg: [N, k, 2] degrees.
    """

    logits: torch.Tensor
    places_deg: np.ndarray

    @property
    def points(self) -> torch.Tensor:
        """Unit vectors [N, k, 3] of the places, float64."""
        return torch.from_numpy(unit_vectors(np.asarray(self.places_deg, dtype=np.float64)))

    def probability(self, temperature: float = 1.0) -> torch.Tensor:
        """Softmax [N, k] of the logits over ``temperature``, float64."""
        return torch.softmax(self.logits.double() / temperature, 1)


@torch.inference_mode()
def best(geoclip: GeoCLIP, photos: torch.Tensor, gallery_deg: np.ndarray, count: int = BEST) -> Candidates:
    """The ``count`` best places of ``gallery_deg`` [G, 2] for frozen features [N, D]."""
    embedded = gallery.embed(geoclip, gallery_deg, geoclip.logit_scale.device)
    cosine, rows = gallery.retrieve_top(geoclip, photos, embedded, count)
    return Candidates(geoclip.logit_scale.exp().cpu() * cosine, gallery_deg[rows.numpy()])


def smoothed(
    found: Candidates, curve: Curve, temperature: float, power: float, block: int = 512
) -> np.ndarray:
    """The place with the most probability around it, [N, 2] degrees: argmax over i of sum_j p_j
    C(h_ij)^power.

    Kriging-like: neighbours vote by the fitted correlation. A large power leaves the best match alone. Ours.
    """
    chosen = []
    for points, share in zip(
        found.points.split(block), found.probability(temperature).split(block), strict=True
    ):
        distance = chord_to_rad(2.0 - 2.0 * points @ points.transpose(1, 2))
        correlation = curve.correlation_of(curve.gamma(distance)).double().clamp(min=0.0)
        votes = (correlation**power @ share[..., None]).squeeze(-1)
        chosen.append(votes.argmax(1))
    rows = torch.cat(chosen).numpy()
    return found.places_deg[np.arange(len(rows)), rows]


def spherical_median(found: Candidates, temperature: float, steps: int = 60, block: int = 512) -> np.ndarray:
    """The point with the least weighted sum of great-circle distances to the candidates, [N, 2] degrees.

    Weiszfeld's iteration in the tangent plane, begun at the candidate of the least sum, which holds back as
    much as it weighs itself. Weights are the probabilities. Source: Fletcher, Venkatasubramanian & Joshi
    (2008); Vardi & Zhang (2000).
    """
    blocks = zip(found.points.split(block), found.probability(temperature).split(block), strict=True)
    return coordinates_of(torch.cat([_weiszfeld(points, share, steps) for points, share in blocks]).numpy())


def _weiszfeld(points: torch.Tensor, share: torch.Tensor, steps: int) -> torch.Tensor:
    """Unit vectors [n, 3] of the medians of ``points`` [n, k, 3] with the weights ``share`` [n, k]."""
    sums = (chord_to_rad(2.0 - 2.0 * points @ points.transpose(1, 2)) @ share[..., None]).squeeze(-1)
    median = points[torch.arange(len(points)), sums.argmin(1)]
    least = sums.min(1).values
    for _ in range(steps):
        angle = chord_to_rad(((points - median[:, None]) ** 2).sum(-1))
        here = angle < 1e-9
        pull = torch.where(here, 0.0, share / angle.clamp(min=1e-9))
        ahead = points - (points * median[:, None]).sum(-1, keepdim=True) * median[:, None]
        ahead = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-12) * angle[..., None]
        force = (pull[..., None] * ahead).sum(1)
        held = (share * here).sum(1, keepdim=True) / force.norm(dim=1, keepdim=True).clamp(min=1e-12)
        step = force / pull.sum(1, keepdim=True).clamp(min=1e-12) * (1.0 - held).clamp(min=0.0)
        length = step.norm(dim=1, keepdim=True)
        moved = length.cos() * median + length.sin() * step / length.clamp(min=1e-12)
        total = (chord_to_rad(((points - moved[:, None]) ** 2).sum(-1)) * share).sum(1)
        better = total < least
        median, least = torch.where(better[:, None], moved, median), torch.where(better, total, least)
        if not better.any():
            break
    return median


@dataclass(frozen=True)
class Decoder:
    """A way to make one answer of the candidates: ``best``, ``smoothed`` or ``median``."""

    name: str
    temperature: float = 1.0
    power: float = math.nan

    def __call__(self, found: Candidates, curve: Curve) -> np.ndarray:
        """Answers [N, 2] in degrees."""
        if self.name == "smoothed":
            return smoothed(found, curve, self.temperature, self.power)
        return spherical_median(found, self.temperature) if self.name == "median" else found.places_deg[:, 0]


DECODERS = {
    "best": [Decoder("best")],
    "smoothed": [Decoder("smoothed", *free) for free in itertools.product(TEMPERATURES, POWERS)],
    "median": [Decoder("median", temperature) for temperature in TEMPERATURES],
}


def score(error_km: np.ndarray) -> float:
    """What decoders are chosen by on validation: the mean accuracy within 25, 100, 200, 750 and 2,500 km."""
    return float(np.mean([np.mean(error_km <= radius) for radius in COMPARED_KM]))


def decode_run(
    run: Run, strategies: list[str], split_names: list[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Answers of each decoder for each strategy and seed, with what is free chosen on validation.

    Returns:
        Predictions with the columns of :func:`lib.evaluate.evaluation.predict_all`, strategy as ``decayed,
        smoothed``; the choices: strategy, seed, decoder, temperature, power, score; the coverage of radii,
        see :func:`coverage`, with strategy and seed.

    Raises:
        ArtefactError: a checkpoint, or the semivariogram, is not there.
    """
    manifest = datasets.read(run)
    split_names = split_names or evaluation.splits_of(run, manifest)
    frozen, places = features.read(run, manifest), gallery.coordinates(run, manifest)
    curve = Curve(FittedSemivariogram.load(run.require(run.semivariogram, "03_semivariogram")))
    truth = datasets.manifest.coordinates(manifest)
    rows = {split: datasets.manifest.rows_of(manifest, split) for split in ["validation", *split_names]}
    frames, choices, covered = [], [], []
    jobs = list(itertools.product(strategies, run.settings.training.seeds))
    for name, seed in progress(jobs, "decoding", len(jobs)):
        geoclip = checkpoints.load(
            run.require(run.checkpoint(name, seed), "04_regularized_training"), run.device
        )
        found = {split: best(geoclip, frozen.rows(some), places) for split, some in rows.items()}
        for tried in DECODERS.values():
            scores = [
                score(distance_km(truth[rows["validation"]], one(found["validation"], curve)))
                for one in tried
            ]
            chosen = tried[int(np.argmax(scores))]
            choices.append((name, seed, chosen.name, chosen.temperature, chosen.power, max(scores)))
            for split in split_names:
                label = name if chosen.name == "best" else f"{name}, {chosen.name}"
                answer = chosen(found[split], curve)
                frames.append(evaluation.predictions_of(manifest.iloc[rows[split]], answer, label, seed))
        for split in split_names:
            table = coverage(found["validation"], truth[rows["validation"]], found[split], truth[rows[split]])
            covered.append(table.assign(split=split, strategy=name, seed=seed))
    names = ["strategy", "seed", "decoder", "temperature", "power", "score"]
    return (
        pd.concat(frames, ignore_index=True),
        pd.DataFrame(choices, columns=names),
        pd.concat(covered, ignore_index=True),
    )


def decode(run: Run, strategies: list[str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """:func:`decode_run` on the run's evaluation splits, made once or reused; decoded.parquet and two
    tables."""
    files = [run.folder / "decoded.parquet", run.table("decoding_choices"), run.table("decoding_coverage")]
    checkpoints = [run.checkpoint(name, seed) for name in strategies for seed in run.settings.training.seeds]

    def make() -> None:
        predictions, *tables = decode_run(run, strategies)
        with writing(files[0]) as aside:
            predictions.to_parquet(aside, index=False)
        for table, path in zip(tables, files[1:], strict=True):
            evaluation.save_table(table, path)

    run.produce(
        "decoding",
        make=make,
        inputs=[run.manifest, run.features, run.semivariogram, *checkpoints, *gallery.input_files(run)],
        outputs=files,
        settings=run.settings.evaluation.model_dump(include={"gallery", "lattice_km", "splits"})
        | {"strategies": strategies},
        code=[decode],
    )
    return pd.read_parquet(files[0]), pd.read_csv(files[1]), pd.read_csv(files[2])


def mass_short_of(found: Candidates, error_km: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability [N] of the candidates that are nearer to the best one than ``error_km`` [N]; infinite where
    all are."""
    distance, held = _balls(found, temperature)
    nearer = (distance < np.asarray(error_km)[:, None] - 1e-6).sum(1)
    mass = np.where(nearer > 0, held[np.arange(len(held)), np.maximum(nearer, 1) - 1], 0.0)
    return np.where(nearer < held.shape[1], mass, np.inf)


def _balls(found: Candidates, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N, k] of the candidates to the best one in kilometres, ascending, and the probability within
    each."""
    points = found.points
    distance, order = chord_to_rad(((points - points[:, :1]) ** 2).sum(-1)).sort(1)
    return rad_to_km(distance.numpy()), found.probability(temperature).gather(1, order).cumsum(1).numpy()


def radius_km(found: Candidates, mass: float, temperature: float = 1.0) -> np.ndarray:
    """Distance [N] in kilometres from the best candidate to the first that makes the probability exceed
    ``mass``; half the globe where none does."""
    distance, held = _balls(found, temperature)
    enough = held > mass + 1e-9
    return np.where(enough.any(1), distance[np.arange(len(distance)), enough.argmax(1)], FARTHEST_KM)


def coverage(
    calibration: Candidates, truth_deg: np.ndarray, found: Candidates, asked_deg: np.ndarray
) -> pd.DataFrame:
    """Radii that should hold the true place with a given level, calibrated on one split and counted on
    another.

    Split conformal prediction: a photo's score is the probability that falls short of its true place, see
    :func:`mass_short_of`; the radius for a level exceeds that quantile of the scores. For photos drawn alike
    the level is kept, whatever the model; held-out regions are not drawn alike.

    Returns:
        level, coverage (share of ``found`` whose true place lies within its radius), plain (the same for the
        softmax's own mass, not calibrated), median_radius_km. Source: Vovk et al. (2005); the score is ours.
    """
    error = distance_km(truth_deg, calibration.places_deg[:, 0])
    scores = np.sort(mass_short_of(calibration, error))
    asked = distance_km(asked_deg, found.places_deg[:, 0])
    rows = []
    for level in LEVELS:
        position = min(len(scores) - 1, math.ceil((len(scores) + 1) * level) - 1)
        radius = radius_km(found, scores[position])
        plain = float(np.mean(asked <= radius_km(found, level - 2e-9) + 1e-6))
        rows.append((level, float(np.mean(asked <= radius + 1e-6)), plain, float(np.median(radius))))
    return pd.DataFrame(rows, columns=["level", "coverage", "plain", "median_radius_km"])
