"""A world whose semivariogram is known, and in which it is known which negatives are false and which are
hard.

Places are those of real photos. Looks are Gaussian random fields on the sphere with a covariance that is
valid there, plus noise:

    f_i = sqrt(1 - nu) Z(g_i) + sqrt(nu) e_i,   Z_1..Z_K independent fields of correlation rho(h), e_i white,

all of unit variance. For many dimensions K the cosine of two photos is (1 - nu) rho(h) on average, so the
semivariogram of the unit features is gamma(h) = nu + (1 - nu) (1 - rho(h)): nugget nu, sill 1. Some photos
get a **twin**, a photo some kilometres away of the same scene (the same Z, other noise), which is a false
negative; some get a **double**, the same scene beyond the range, a hard negative. Only noise and distance
tell them apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gstools
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lib.data import manifest as manifests
from lib.data.blue_marble import photo_places
from lib.data.sphere import destination
from lib.evaluate import evaluation
from lib.method import negatives
from lib.method.errors import BundleError
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, pairwise_distance_rad
from lib.method.negatives import Pairs, Reweighting, Strategy
from lib.method.semivariogram import Curve, FittedSemivariogram
from lib.runs import Run, ranks, writing
from lib.runs.files import write_rows
from lib.settings import Simulation
from lib.train import checkpoints, curve, training
from lib.train.training import Job, TrainingData

FALSE, HARD, EASY = "false negative", "hard negative", "easy negative"
TWIN_KM = 5.0
DOUBLE_KM = 6_000.0
"""Doubles are farther apart than this."""
ORACLES = ("oracle", "oracle_false", "oracle_hard")
"""Strategies that know the truth: both kinds, false negatives only, hard negatives only."""
SEPARATION = 30.0
"""What an oracle takes off a false negative's logit: it all but leaves the sum."""


class SimulationError(BundleError):
    """A world cannot be made; the message says why."""


@dataclass(frozen=True)
class World:
    """Photos of a simulated world.

    Attributes:
        manifest: id, path, latitude, longitude, split, continent, and scene: photos of one scene share it.
        features: [N, K] float32.
        settings: what it was made with.
    """

    manifest: pd.DataFrame
    features: np.ndarray
    settings: Simulation

    def gamma(self, distance_rad: np.ndarray) -> np.ndarray:
        """The known semivariogram."""
        rho = covariance(self.settings).cor_yadrenko(np.asarray(distance_rad, dtype=float))
        return self.settings.nugget + (1.0 - self.settings.nugget) * (1.0 - rho)

    def kinds(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """What the pairs of manifest rows ``first`` and ``second`` [n] are in truth: FALSE, HARD or EASY."""
        scene, places = self.manifest["scene"].to_numpy(), manifests.coordinates(self.manifest)
        same = scene[first] == scene[second]
        far = distance_km(places[first], places[second]) > DOUBLE_KM / 2
        return np.where(same, np.where(far, HARD, FALSE), EASY)


def known_table(world: World) -> pd.DataFrame:
    """The known semivariogram at 200 distances from 5 km to the antipode: columns lag_km and gamma."""
    lag = np.geomspace(5.0, math.pi * EARTH_RADIUS_KM, 200)
    return pd.DataFrame({"lag_km": lag, "gamma": world.gamma(lag / EARTH_RADIUS_KM)})


def covariance(settings: Simulation) -> gstools.CovModel:
    """The fields' covariance, by GSTools, valid on the sphere (chordal distance); length scale in radians."""
    return gstools.Exponential(latlon=True, var=1.0, len_scale=settings.length_scale_km / EARTH_RADIUS_KM)


def make(settings: Simulation) -> World:
    """The world of ``settings``; the same seed makes the same one.

    Exact: the fields are drawn with the covariance's Cholesky factor, not by a spectral approximation.

    Raises:
        SimulationError: twins and doubles would be more than the photos.
    """
    generator = np.random.default_rng(settings.seed)
    twins, doubles = (round(share * settings.train) for share in (settings.twins, settings.doubles))
    own = settings.train - twins - doubles
    if own < max(twins, doubles):
        raise SimulationError(
            "simulation.twins and simulation.doubles leave too few photos of their own; lower them"
        )
    counts = {"train": own, "validation": settings.validation, "test": settings.test}
    pool = generator.permutation(np.unique(photo_places().astype(np.float32), axis=0)).astype(np.float64)
    places, pool = np.split(pool, [sum(counts.values())])
    correlation = covariance(settings).cor_yadrenko(pairwise_distance_rad(places, places)) + 1e-8 * np.eye(
        len(places)
    )
    fields = np.linalg.cholesky(correlation) @ generator.standard_normal((len(places), settings.dimensions))
    of_twin, of_double = (generator.choice(own, count, replace=False) for count in (twins, doubles))
    source = np.concatenate([np.arange(own), of_twin, of_double, np.arange(own, len(places))])
    near = destination(places[of_twin], *(TWIN_KM * generator.uniform(-0.7, 0.7, (2, twins))))
    coordinates = np.concatenate(
        [places[:own], near, _far_from(places[of_double], pool, generator), places[own:]]
    )
    noise = generator.standard_normal((len(source), settings.dimensions))
    features = math.sqrt(1.0 - settings.nugget) * fields[source] + math.sqrt(settings.nugget) * noise
    splits = ["train"] * settings.train + ["validation"] * settings.validation + ["test"] * settings.test
    frame = pd.DataFrame(
        {
            "id": [f"s{number:05d}" for number in range(len(source))], "latitude": coordinates[:, 0],
            "longitude": coordinates[:, 1],
            "split": splits, "continent": "simulated", "scene": source,
        }
    )  # fmt: skip
    return World(frame.assign(path=frame["id"] + ".jpg"), features.astype(np.float32), settings)


def _far_from(places: np.ndarray, pool: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each of ``places`` [n, 2] a place of ``pool`` [P, 2] of its own beyond DOUBLE_KM."""
    rows = generator.choice(len(pool), len(places), replace=False)
    while (near := distance_km(places, pool[rows]) <= DOUBLE_KM).any():
        free = np.setdiff1d(np.arange(len(pool)), rows)
        rows[near] = generator.choice(free, int(near.sum()), replace=False)
    return pool[rows]


def as_run(world: World, run: Run) -> Run:
    """``world`` as a run in simulation/ of the run's folder: manifest, features and a fitted semivariogram,
    made or reused."""
    # small ones, dealt out whole; no head of CLIP's fits these features
    own = run.settings.training.changed(
        {
            "epochs": world.settings.epochs,
            "seeds": world.settings.seeds,
            "photos": None,
            "validate_every": world.settings.epochs,
        }
        | {"parallel": "trainings", "image_head": "scratch"}
    ).model_copy(
        update={"variants": {name: dict(one) for name, one in run.settings.training.variants.items()}}
    )
    changed = {
        "training": own,
        "backbone": run.settings.backbone.model_copy(
            update={"centred": False, "name": "simulated", "views": 1}
        ),
        "semivariogram": run.settings.semivariogram.model_copy(update={"lag_width_rad": 0.01}),
        "evaluation": run.settings.evaluation.model_copy(update={"gallery": "train", "splits": ["test"]}),
    }
    simulated = replace(
        run, folder=run.folder / "simulation", settings=run.settings.model_copy(update=changed)
    )

    def _write() -> None:
        manifests.write(world.manifest, simulated.manifest)
        write_rows(simulated.features, [world.features], world.features.dtype, world.features.shape)

    simulated.produce(
        "world", make=_write, outputs=[simulated.manifest, simulated.features],
        settings=world.settings.model_dump(),
        code=[make],
    )  # fmt: skip
    curve.fit_run(simulated)
    return simulated


def oracle(world: World, name: str, beta: float) -> Strategy:
    """A strategy that knows the truth: off with false negatives, log-weight ``beta`` for hard ones; see
    ``ORACLES``.

    It knows photos by their places, which are all different.
    """
    places = _place_keys(torch.from_numpy(manifests.coordinates(world.manifest)).float())
    order = torch.argsort(places)
    scenes = torch.tensor(world.manifest["scene"].to_numpy())[order]

    def _reweight(pairs: Pairs) -> Reweighting:
        of_place = scenes[torch.searchsorted(places[order], _place_keys(pairs.place_deg.cpu()))].to(
            pairs.place_deg.device
        )
        same = of_place[: len(pairs.logits), None] == of_place[None]
        far = pairs.distance_rad > DOUBLE_KM / 2 / EARTH_RADIUS_KM
        log_weight = torch.zeros_like(pairs.distance_rad)
        if name != "oracle_hard":
            log_weight = log_weight.masked_fill(same & ~far, -SEPARATION)
        return Reweighting(
            log_weight=log_weight.masked_fill(same & far, 0.0 if name == "oracle_false" else beta)
        )

    return Strategy(name, "knows the truth of a simulated world", _reweight, needs_curve=False)


def _place_keys(coordinates_deg: torch.Tensor) -> torch.Tensor:
    """One integer for each place [n, 2], float32 degrees: its bits."""
    bits = coordinates_deg.float().contiguous().view(torch.int32).long()
    return (bits[:, 0] << 32) | (bits[:, 1] & 0xFFFFFFFF)


def weights_of(
    world: World, simulated: Run, names: Sequence[str], anchors: int = 400
) -> tuple[dict[str, torch.Tensor | None], np.ndarray, np.ndarray]:
    """Log-weight (less the target's share, where targets are spread) of each strategy: ``anchors`` photos,
    half at most, against others.

    Before training: logits are zero, so a strategy that reads them alone weighs nothing.

    Returns:
        strategy -> [anchors, N - anchors] or None, the true kinds of these pairs, and the anchors' rows.
    """
    rows = np.random.default_rng(0).permutation(np.flatnonzero(world.manifest["split"] == "train"))
    anchors = min(anchors, len(rows) // 2)
    photos = rows[:anchors]
    unit = F.normalize(torch.from_numpy(world.features[rows]), dim=1)
    places = torch.from_numpy(manifests.coordinates(world.manifest)[rows]).float()
    fitted = Curve(FittedSemivariogram.load(simulated.semivariogram))
    found = {}
    for name in names:
        if name in ORACLES:
            strategy, values = oracle(world, name, 4.0), {}
        else:
            registered, own = simulated.settings.training.own(name)
            strategy, values = (
                negatives.get(registered),
                {key: getattr(own, key) for key in negatives.PARAMETERS},
            )
        given = {"alpha": 0.0, "beta": 0.0} | values
        seen = Pairs(torch.zeros(anchors, len(rows)), unit, places, fitted, **given)
        made = strategy.reweight(seen)
        # a share of the target damps a negative
        effect = made.effect() if made.targets is None else -made.targets
        found[name] = None if effect is None else effect[:, anchors:]
    kinds = world.kinds(np.repeat(photos, len(rows) - anchors), np.tile(rows[anchors:], anchors))
    return found, kinds.reshape(anchors, -1), photos


def detection(
    world: World, simulated: Run, names: Sequence[str], resamples: int = 200
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well each strategy's weights find false negatives (the most damped) and hard ones (the most
    emphasized).

    Returns:
        strategy, kind, average_precision, ci_low, ci_high (95 %, over anchors), prevalence; NaN where a
        strategy damps, or emphasizes, nothing. And the curves: strategy, kind, recall, precision, thinned to
        200 points.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    weights, kinds, _ = weights_of(world, simulated, names)
    draw, rows, curves = np.random.default_rng(0), [], []
    for name, (kind, sign) in itertools.product(names, ((FALSE, -1.0), (HARD, 1.0))):
        truth = kinds == kind
        effect = None if weights[name] is None else sign * weights[name].numpy()
        if effect is None or not (effect > 0).any():
            rows.append((name, kind, np.nan, np.nan, np.nan, truth.mean()))
            continue
        effect = np.maximum(effect, 0.0)
        value, ranked = average_precision_score(truth.ravel(), effect.ravel()), _Ranked.of(truth, effect)
        times = draw.multinomial(len(truth), np.full(len(truth), 1.0 / len(truth)), resamples)
        drawn = [ranked.average_precision(one) for one in times]
        rows.append((name, kind, value, *np.nanquantile(drawn, [0.025, 0.975]), truth.mean()))
        precision, recall, _ = precision_recall_curve(truth.ravel(), effect.ravel())
        # the best of a recall
        some = np.unique(np.searchsorted(-recall[:-1], -np.linspace(1.0, 0.005, 200), side="right") - 1)
        curves.append(
            pd.DataFrame(
                {"strategy": name, "kind": kind, "recall": recall[some], "precision": precision[some]}
            )
        )
    names_of = ["strategy", "kind", "average_precision", "ci_low", "ci_high", "prevalence"]
    return pd.DataFrame(rows, columns=names_of), pd.concat(curves, ignore_index=True)


@dataclass(frozen=True)
class _Ranked:
    """Pairs of anchors [A, M] in the order of their effect, sorted once for many draws of anchors."""

    truth: np.ndarray
    anchor: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, effect: np.ndarray) -> _Ranked:
        """Of truth and effect, both [A, M]."""
        order = np.argsort(-effect, axis=None, kind="stable")
        values = effect.ravel()[order]
        ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
        return cls(truth.ravel()[order], order // truth.shape[1], ends)

    def average_precision(self, times: np.ndarray) -> float:
        """Of a draw in which anchor a comes ``times``[a] times; pairs of equal effect count together. NaN
        without true pairs."""
        weight = times[self.anchor]
        true, drawn = np.cumsum(weight * self.truth)[self.ends], np.cumsum(weight)[self.ends]
        if true[-1] == 0:
            return math.nan
        return float((np.diff(true, prepend=0) / true[-1] * true / np.maximum(drawn, 1)).sum())


def train_all(world: World, simulated: Run, names: Sequence[str]) -> pd.DataFrame:
    """Train strategies and oracles in ``world`` with its seeds, or reuse; test predictions as
    lib.evaluate.evaluation has them.

    An oracle's emphasis is the ``beta`` of ``hard_only``.
    """
    seeds = simulated.settings.training.seeds
    jobs = list(itertools.product(names, seeds))
    for name, seed in jobs[ranks.rank() :: ranks.count()]:
        if name in ORACLES:
            _train_oracle(world, simulated, name, seed)
        else:
            training.make(Job.of(simulated, name, seed))
    ranks.wait()
    path = simulated.predictions

    def _predict() -> None:
        with writing(path) as aside:
            evaluation.predict_all(simulated, list(names)).to_parquet(aside, index=False)

    trained = [simulated.checkpoint(name, seed) for name, seed in jobs]
    simulated.produce(
        "predictions", make=_predict, inputs=[simulated.manifest, simulated.features, *trained],
        outputs=[path],
        settings={"strategies": list(names), "seeds": seeds}, code=[evaluation.predict_all],
    )  # fmt: skip
    return pd.read_parquet(path)


def _train_oracle(world: World, simulated: Run, name: str, seed: int) -> None:
    path = simulated.checkpoint(name, seed)
    own = simulated.settings.training.own("hard_only")[1]
    settings = own.changed({"seeds": [seed], "strategies": ["infonce"]})
    asked = replace(simulated, settings=simulated.settings.model_copy(update={"training": settings}))

    def make() -> None:
        model, history = training.train(
            asked, TrainingData.read(asked, False), oracle(world, name, settings.beta), seed
        )
        checkpoints.save(model, path, strategy=name, seed=seed)
        with writing(simulated.history(name, seed)) as aside:
            history.to_csv(aside, index=False)

    simulated.produce(
        f"training-{path.stem}", make=make, inputs=[simulated.manifest, simulated.features],
        outputs=[path, simulated.history(name, seed)], settings=settings.model_dump(mode="json"),
        code=[_train_oracle], by="this rank",
    )  # fmt: skip
