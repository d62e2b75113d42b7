"""The theoretical semivariogram: fitted to an empirical one (:mod:`lib.empirical`), saved, evaluated. Lags and length scales in radians."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gstools
import numpy as np
import pandas as pd
import torch

from lib import datasets, features, ranks
from lib.empirical import EmpiricalSemivariogram, SemivariogramError, estimate
from lib.files import READING_ERRORS, one_line
from lib.geodesy import EARTH_RADIUS_KM, rad_to_km
from lib.runs import Run, write_json, writing

SLOPE_LIMIT_PER_RAD = 1e-2
"""The range is where d gamma / dh falls below this, per radian (author code)."""
SLOPE_STEP_RAD = 0.01
"""Step of the author's search for the range, radians."""
SILL_SHARE = 0.95
"""The rule ``sill95``: the range is where gamma has gained this share of the partial sill."""

NO_RISE = (
    "the lag means do not rise with distance, so no semivariogram can be fitted: near places look no more "
    "alike than far ones; check coordinates, features and lag width"
)
CRESSIE_ROUNDS = 6
"""Most rounds of reweighting by the fitted curve; they end once no weight moves by a ten-thousandth."""
CRESSIE_FLOOR = 1e-3
"""Smallest gamma that divides a weight: a curve without nugget would give its first lag all the weight there is."""

SHAPE_PARAMETERS = {"Stable": "alpha", "Matern": "nu", "Rational": "alpha"}
"""GSTools' name of the shape parameter of the families that have one; called exponent here."""


@dataclass(frozen=True)
class FittedSemivariogram:
    """A theoretical model gamma(h) = nugget + partial_sill (1 - rho(h / length_scale)), h > 0.

    Attributes:
        family: a GSTools covariance model.
        metric: planar (h itself) or sphere (GSTools latlon=True: the chord 2 sin(h/2), valid on a sphere).
        nugget, partial_sill: cosine distance, 0..2.
        length_scale_rad: radians.
        exponent: shape parameter (Stable: alpha, 0..2; Matern: nu; Rational: alpha); None where the family has none.
        range_rad, range_km: distance beyond which two photos count as far, by ``range_rule``.
        r2: share of the lag means' variance that the model explains.
        backbone, centred, photos, pairs: what it was fitted to.
    """

    family: str
    metric: str
    nugget: float
    partial_sill: float
    length_scale_rad: float
    exponent: float | None
    range_rad: float
    range_km: float
    range_rule: str
    weights: str
    r2: float
    backbone: str
    centred: bool
    photos: int
    pairs: int

    @property
    def sill(self) -> float:
        """nugget + partial sill."""
        return self.nugget + self.partial_sill

    @property
    def length_scale_km(self) -> float:
        """Length scale in kilometres."""
        return self.length_scale_rad * EARTH_RADIUS_KM

    def model(self) -> gstools.CovModel:
        """The GSTools covariance model with these parameters."""
        shape = {SHAPE_PARAMETERS[self.family]: self.exponent} if self.family in SHAPE_PARAMETERS else {}
        return _covariance_model(
            self.family,
            self.metric,
            var=self.partial_sill,
            len_scale=self.length_scale_rad,
            nugget=self.nugget,
            **shape,
        )

    def gamma(self, distance_rad: np.ndarray) -> np.ndarray:
        """gamma(h), any shape; at h = 0 the limit h -> 0+, the nugget: two photos of one place are not one photo."""
        return _evaluate(self.model(), distance_rad)

    def correlation(self, distance_rad: np.ndarray) -> np.ndarray:
        """C(h) = 1 - (gamma(h) - nugget) / partial_sill, 1 at h = 0 and towards 0 beyond the range."""
        return 1.0 - (self.gamma(distance_rad) - self.nugget) / self.partial_sill

    def save(self, path: Path) -> None:
        """Write as JSON with named parameters."""
        write_json(path, asdict(self))


def _covariance_model(family: str, metric: str, **parameters: float) -> gstools.CovModel:
    place = {"latlon": True} if metric == "sphere" else {"dim": 2}
    return getattr(gstools, family)(**place, **parameters)


def _evaluate(model: gstools.CovModel, distance_rad: np.ndarray) -> np.ndarray:
    distance = np.maximum(np.asarray(distance_rad, dtype=np.float64), 1e-12)
    return model.vario_yadrenko(distance) if model.latlon else model.variogram(distance)


def load(path: Path) -> FittedSemivariogram:
    """The model saved at ``path``.

    Raises:
        SemivariogramError: the file is no saved semivariogram.
    """
    try:
        return _possible(FittedSemivariogram(**json.loads(path.read_text(encoding="utf-8"))))
    except READING_ERRORS as error:
        raise SemivariogramError(f"{path}: not a saved semivariogram ({one_line(error)}); run notebook 03") from error


def _possible(fitted: FittedSemivariogram) -> FittedSemivariogram:
    """``fitted``, if its numbers can be a curve's: one that is not would end as a loss that is not a number."""
    numbers = (fitted.nugget, fitted.partial_sill, fitted.length_scale_rad, fitted.range_rad, fitted.exponent or 0.0)
    if not all(map(math.isfinite, numbers)) or fitted.nugget < 0 or min(fitted.partial_sill, fitted.length_scale_rad) <= 0:
        raise ValueError(f"no curve has nugget, partial sill, length scale, range, exponent {numbers}")
    return fitted


def fit(
    empirical: EmpiricalSemivariogram,
    *,
    family: str = "Stable",
    metric: str = "planar",
    weights: str = "none",
    range_rule: str = "slope",
    max_lag_rad: float = math.pi,
    backbone: str = "",
    centred: bool = False,
    photos: int = 0,
    start: FittedSemivariogram | None = None,
) -> FittedSemivariogram:
    """Least-squares fit of a GSTools model with nugget to the lag means.

    Args:
        weights: ``none`` (author code), ``pairs`` (each lag counts by its number of pairs) or ``cressie`` (by pairs /
            gamma(h)**2 of the model itself; Cressie 1985, found by reweighting).
        max_lag_rad: longer lags are left out.
        start: a curve of the same family and metric from which to search; GSTools' own guess where there is none.

    Raises:
        SemivariogramError: fewer than 5 lags, or the means do not rise with distance (nothing to fit).

    Source: author code, ``Stable(dim=2)`` on radians, unweighted, with GSTools' robust loss; plain squares and the rest are
    ours (method.md, section 4).
    """
    used = (empirical.pairs > 0) & (empirical.lag_rad <= max_lag_rad)
    lag, gamma, pairs = empirical.lag_rad[used], empirical.gamma[used], empirical.pairs[used]
    if len(lag) < 5:
        raise SemivariogramError(f"{len(lag)} lags with pairs are too few for a fit; widen semivariogram.lag_width_rad")
    model = _covariance_model(family, metric) if start is None else start.model()
    try:
        found, lag_weights = _least_squares(model, lag, gamma, pairs, weights, "current" if start else "default")
    except (RuntimeError, ValueError) as error:
        raise SemivariogramError(
            f"the {family} model cannot be fitted: {error}; try another semivariogram.family"
        ) from error
    if not _rises(lag, gamma, lag_weights, model):
        raise SemivariogramError(NO_RISE)
    range_rad = RANGE_RULES[range_rule](model)
    return FittedSemivariogram(
        family=family,
        metric=metric,
        nugget=float(found["nugget"]),
        partial_sill=float(found["var"]),
        length_scale_rad=float(found["len_scale"]),
        exponent=float(found[SHAPE_PARAMETERS[family]]) if family in SHAPE_PARAMETERS else None,
        range_rad=range_rad,
        range_km=float(rad_to_km(range_rad)),
        range_rule=range_rule,
        weights=weights,
        r2=float(1.0 - np.mean((gamma - _evaluate(model, lag)) ** 2) / np.var(gamma)),
        backbone=backbone,
        centred=centred,
        photos=photos,
        pairs=int(empirical.pairs.sum()),
    )


def _least_squares(
    model: gstools.CovModel, lag: np.ndarray, gamma: np.ndarray, pairs: np.ndarray, weights: str, guess: str
) -> tuple[dict[str, float], np.ndarray]:
    """Fit ``model`` in place; its parameters, and the weights of the lags [K] under which it was found."""
    lag_weights = np.ones(len(lag)) if weights == "none" else pairs
    root = None if weights == "none" else np.sqrt(pairs)
    found, _ = model.fit_variogram(lag, gamma, nugget=True, weights=root, loss="linear", init_guess=guess)
    for _ in range(CRESSIE_ROUNDS if weights == "cressie" else 0):
        before, lag_weights = lag_weights, pairs / np.maximum(_evaluate(model, lag), CRESSIE_FLOOR) ** 2
        if np.allclose(lag_weights, before, rtol=1e-4):
            break
        found, _ = model.fit_variogram(
            lag, gamma, nugget=True, weights=np.sqrt(lag_weights), loss="linear", init_guess="current"
        )
    return found, lag_weights


def _rises(lag: np.ndarray, gamma: np.ndarray, weights: np.ndarray, model: gstools.CovModel) -> bool:
    """Whether the fitted curve beats a constant by Schwarz' criterion: three further parameters must earn ln n each, and 4 to spare."""
    constant = np.average(gamma, weights=weights)
    around_constant, around_curve = (np.sum(weights * (gamma - to) ** 2) for to in (constant, _evaluate(model, lag)))
    if model.var < 1e-9 or around_constant <= 1e-18 * len(lag):
        return False
    return len(lag) * math.log(around_constant / max(around_curve, 1e-300)) > 3.0 * math.log(len(lag)) + 4.0


def range_by_slope(model: gstools.CovModel) -> float:
    """First h, radians, at which d gamma / dh < 1e-2 per radian, in steps of 0.01 rad; pi where there is none.

    Source: author code (method.md, section 4). Ours: counted from where the curve is steepest, since a Gaussian starts flat.
    """
    grid = np.arange(SLOPE_STEP_RAD, math.pi + SLOPE_STEP_RAD, SLOPE_STEP_RAD)
    slope = np.diff(_evaluate(model, grid)) / SLOPE_STEP_RAD
    flat = np.flatnonzero((slope < SLOPE_LIMIT_PER_RAD) & (np.arange(len(slope)) >= slope.argmax()))
    return float(grid[flat[0]]) if len(flat) else math.pi


def range_by_sill(model: gstools.CovModel) -> float:
    """First h, radians, at which gamma has gained 95 % of the partial sill, to 0.001 rad; pi where there is none."""
    grid = np.arange(1, round(math.pi / 1e-3)) * 1e-3
    reached = np.flatnonzero(_evaluate(model, grid) >= model.nugget + SILL_SHARE * model.var)
    return float(grid[reached[0]]) if len(reached) else math.pi


RANGE_RULES: dict[str, Callable[[gstools.CovModel], float]] = {"slope": range_by_slope, "sill95": range_by_sill}


class Curve(torch.nn.Module):
    """A fitted semivariogram on a tensor's device: gamma(h) by linear interpolation in sqrt(h).

    Families need no code of their own here: the model itself fills a table of 16,385 nodes, dense where gamma is steep. From
    6 m on the error is below 1e-4 of the partial sill, for all but extreme exponents below 1e-5.
    """

    NODES = 16_385

    def __init__(self, fitted: FittedSemivariogram) -> None:
        super().__init__()
        nodes = (np.linspace(0.0, 1.0, self.NODES) ** 2) * math.pi
        self.nugget, self.partial_sill, self.range_rad = fitted.nugget, fitted.partial_sill, fitted.range_rad
        values = fitted.gamma(nodes)
        self.register_buffer("values", torch.from_numpy(values).float())
        self.register_buffer("rise", torch.from_numpy(np.diff(values, append=values[-1])).float())

    @classmethod
    def position(cls, distance_rad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Node below each distance 0..pi, int64, and the share of the way to the next, float32; of any shape."""
        position = distance_rad.float().sqrt().mul_((cls.NODES - 1) / math.sqrt(math.pi))
        lower = position.long().clamp_(max=cls.NODES - 1)
        return lower, position.frac_()

    def gamma(self, distance_rad: torch.Tensor) -> torch.Tensor:
        """gamma(h), float32, of distances 0..pi of any shape."""
        lower, share = self.position(distance_rad)
        return torch.addcmul(self.values[lower], self.rise[lower], share)

    def correlation(self, gamma: torch.Tensor) -> torch.Tensor:
        """C = 1 - (gamma - nugget) / partial_sill of ``gamma`` = gamma(h), any shape."""
        return 1.0 - (gamma - self.nugget) / self.partial_sill


class LocalCurves(torch.nn.Module):
    """Curves of R groups of photos, looked up for each photo of a batch; :class:`Curve` for each of them."""

    def __init__(self, fitted: Sequence[FittedSemivariogram]) -> None:
        super().__init__()
        curves = [Curve(one) for one in fitted]
        self.register_buffer("values", torch.stack([one.values for one in curves]))
        self.register_buffer("rise", torch.stack([one.rise for one in curves]))
        self.register_buffer("nugget", torch.tensor([one.nugget for one in fitted]))
        self.register_buffer("partial_sill", torch.tensor([one.partial_sill for one in fitted]))

    def gamma(self, distance_rad: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """gamma_g(h), float32 [B, M], of distances [B, M] and the photos' groups, int64 [B]."""
        lower, share = Curve.position(distance_rad)
        lower += group[:, None] * Curve.NODES
        return torch.addcmul(self.values.flatten()[lower], self.rise.flatten()[lower], share)

    def correlation(self, gamma: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """C_g = 1 - (gamma - nugget) / partial_sill of ``gamma`` [B, M] and the photos' groups, int64 [B]."""
        return 1.0 - (gamma - self.nugget[group, None]) / self.partial_sill[group, None]


def fit_run(run: Run) -> tuple[EmpiricalSemivariogram, FittedSemivariogram]:
    """Estimate and fit on the training split of ``run``, or reuse; empirical sums, tables and semivariogram.json.

    Never sees the validation and test splits. Of several processes each takes a share of the pairs.
    """
    settings = run.settings.semivariogram
    sums = run.empirical
    used = settings.model_dump() | {"centred": run.settings.backbone.centred, "device": run.adding_device.type}

    def make() -> None:
        manifest, frozen = datasets.read(run, datasets.manifest.PLACES), features.read(run)
        rows = datasets.manifest.rows_of(manifest, "train")
        empirical = estimate(
            lambda chosen: frozen.unit(rows[chosen]),
            datasets.manifest.coordinates(manifest)[rows],
            settings.lag_width_rad,
            max_pairs=settings.max_pairs,
            sample_pairs=settings.sample_pairs,
            seed=settings.seed,
            device=run.adding_device,
            among_ranks=True,
        )
        if ranks.rank() > 0:
            return
        with writing(sums) as aside:
            np.savez(aside, **asdict(empirical))
        with writing(run.table("semivariogram")) as aside:
            empirical.table().to_csv(aside, index=False)
        fitted = fit(
            empirical,
            family=settings.family,
            metric=settings.metric,
            weights=settings.weights,
            range_rule=settings.range_rule,
            max_lag_rad=settings.max_lag_rad,
            backbone=run.settings.backbone.name,
            centred=run.settings.backbone.centred,
            photos=len(rows),
        )
        fitted.save(run.semivariogram)

    run.produce(
        "semivariogram",
        make=make,
        inputs=[run.require(run.manifest, "01_data_preparation"), run.require(run.features, "01_data_preparation")],
        outputs=[sums, run.table("semivariogram"), run.semivariogram],
        settings=used,
        code=["geodesy", "shells", "binning", "empirical", "semivariogram", "features"],
        by="all ranks",
        group="semivariogram",
    )
    return load_empirical(sums), load(run.semivariogram)


def load_empirical(path: Path) -> EmpiricalSemivariogram:
    """The sums saved at ``path`` (npz).

    Raises:
        SemivariogramError: the file is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return EmpiricalSemivariogram(**{name: value[()] for name, value in stored.items()})
    except READING_ERRORS as error:
        raise SemivariogramError(f"{path}: not the sums of a semivariogram ({one_line(error)}); run notebook 03") from error


def some_photos(count: int, photos: int = 4_000, seed: int = 0) -> np.ndarray:
    """Which of ``count`` photos the semivariogram of learned embeddings is estimated from: ``photos`` of them at random, int64."""
    return np.random.default_rng(seed).permutation(count)[:photos]


def of_embeddings(unit: torch.Tensor, coordinates_deg: np.ndarray) -> tuple[EmpiricalSemivariogram, FittedSemivariogram]:
    """Semivariogram of embeddings that are being learned, over lags of 0.01 rad, added up on the processor.

    Args:
        unit: unit embeddings [N, 512]; coordinates_deg: [N, 2].

    Raises:
        SemivariogramError: their dissimilarity does not rise with distance.
    """
    chosen = unit.cpu()  # a GPU has no sums that are the same every time, and these few pairs take no time
    empirical = estimate(lambda some: chosen[torch.from_numpy(some)], coordinates_deg, 0.01)
    return empirical, fit(empirical, backbone="learned embeddings", photos=len(chosen))


def load_local(path: Path) -> dict[str, FittedSemivariogram]:
    """The models of groups of photos saved at ``path``, by group.

    Raises:
        SemivariogramError: the file is none.
    """
    try:
        return {name: _possible(FittedSemivariogram(**values)) for name, values in json.loads(path.read_text("utf-8")).items()}
    except READING_ERRORS as error:
        raise SemivariogramError(f"{path}: not saved semivariograms of groups ({one_line(error)}); run notebook 03") from error


def parameters(fitted: FittedSemivariogram) -> pd.DataFrame:
    """The fit as a table for reading: name, value, unit, meaning."""
    rows = [
        ("nugget", fitted.nugget, "cosine distance", "dissimilarity of photos of one place"),
        ("partial sill", fitted.partial_sill, "cosine distance", "what distance adds to it"),
        ("sill", fitted.sill, "cosine distance", "dissimilarity of unrelated photos"),
        ("length scale", fitted.length_scale_km, "km", "how fast the curve rises"),
        ("range", fitted.range_km, "km", f"where far begins, by the rule {fitted.range_rule}"),
        ("R2", fitted.r2, "", "explained share of the lag means' variance"),
    ]
    if fitted.exponent is not None:
        rows.insert(4, ("exponent", fitted.exponent, "", "shape of the rise"))
    return pd.DataFrame(rows, columns=["parameter", "value", "unit", "meaning"]).round(4).set_index("parameter")


def range_table(fitted: FittedSemivariogram) -> pd.DataFrame:
    """The range by each rule, radians and kilometres; the one that the run uses is marked."""
    model = fitted.model()
    rows = [(name, of(model), rad_to_km(of(model)), name == fitted.range_rule) for name, of in RANGE_RULES.items()]
    return pd.DataFrame(rows, columns=["rule", "range_rad", "range_km", "used"]).round({"range_rad": 3, "range_km": 0})


def compare(several: Mapping[str, FittedSemivariogram]) -> pd.DataFrame:
    """Parameters of several curves side by side, one row each: photos, nugget, sill, length_scale_km, exponent, range_km, r2."""
    names = ["photos", "nugget", "sill", "length_scale_km", "exponent", "range_km", "r2"]
    rounding = {"nugget": 3, "sill": 3, "length_scale_km": 0, "exponent": 2, "range_km": 0, "r2": 2}
    rows = {name: [getattr(one, column) for column in names] for name, one in several.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=names).rename_axis("curve").round(rounding)
