"""The semivariogram of a run: estimated and fitted on its training photos, once, and read back."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.cluster.vq import kmeans2
from scipy.stats import t as student_t

from lib.data import datasets, features, sampling
from lib.method import fitting, semivariogram
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.errors import BundleError
from lib.method.geodesy import rad_to_km, unit_vectors
from lib.method.semivariogram import RANGE_RULES, FittedSemivariogram
from lib.runs import Run, note, ranks, writing
from lib.runs.files import READING_ERRORS, one_line

INTERVAL_PHOTOS = 2_000
"""Photos at most from which the intervals of a faint curve come."""


def fit_run(run: Run) -> tuple[EmpiricalSemivariogram, FittedSemivariogram]:
    """Estimate and fit on the training split of ``run``, or reuse: empirical sums and fitted curve.

    Never sees the validation and test splits. Of several processes each takes a share of the pairs.
    """
    settings = run.settings.semivariogram
    sums, backbone = run.empirical, run.settings.backbone
    about = {"backbone": backbone.name, "centred": backbone.centred}
    used = settings.model_dump() | {"centred": backbone.centred}
    used["device"] = run.adding_device.type

    def make() -> None:
        manifest = datasets.read(run, datasets.manifest.PLACES)
        frozen = features.read(run, manifest)
        rows = datasets.manifest.rows_of(manifest, "train")
        places = datasets.manifest.coordinates(manifest)[rows]
        empirical = sampling.estimate(
            lambda chosen: frozen.unit(rows[chosen]),
            places,
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
        about["photos"] = len(rows)
        given = settings.model_dump(include={"family", "metric", "weights", "range_rule", "max_lag_rad"})
        try:
            fitted = semivariogram.fit(empirical, **given, **about)
            if fitted.weights != settings.weights:
                among = (settings.lag_width_rad, settings.max_lag_rad)
                fitted = intervals(fitted, lambda chosen: frozen.unit(rows[chosen]), places, *among)
        except fitting.NoRise as error:
            fitted = semivariogram.flat(empirical, **about)
            note(f"{error}; strategies that need the curve are left out")
        with writing(run.semivariogram) as aside:
            fitted.save(aside)
        if fitted.rises and (fitted.family, fitted.weights) != (settings.family, settings.weights):
            said = f"semivariogram.family={settings.family} found no good curve; lags weighted by their pairs"
            note(f"{said}: {fitted.family}, {sentence(empirical, fitted)}")

    run.produce(
        "semivariogram",
        make=make,
        inputs=[run.require(path, "01_data_preparation") for path in (run.manifest, run.features)],
        outputs=[sums, run.table("semivariogram"), run.semivariogram],
        settings=used,
        code=[fit_run],
        by="all ranks",
        group="semivariogram",
    )
    return load_empirical(sums), FittedSemivariogram.load(run.semivariogram)


def intervals(
    fitted: FittedSemivariogram,
    unit_rows: sampling.UnitRows,
    places_deg: np.ndarray,
    lag_width_rad: float,
    max_lag_rad: float = math.pi,
) -> FittedSemivariogram:
    """``fitted`` with intervals of 95 % of its nugget's share of the sill and of its range.

    Ten regions of places are left out in turn (delete-a-group jackknife, Kott 2001, with Student's t), of
    ``INTERVAL_PHOTOS`` photos at most. Regions, because photos taken near each other err together. They are
    rather short: of 95 simulated exponential fields that were fitted by the stable family they held the
    nugget in 83 and the range in 78, before a step of the slope rule was added on either side of the range.
    Without intervals where no curve can be fitted to what is left.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(places_deg))[:INTERVAL_PHOTOS])
    _, region = kmeans2(unit_vectors(places_deg[chosen]), 10, minit="++", rng=0)
    how = {"family": fitted.family, "metric": fitted.metric, "range_rule": fitted.range_rule}
    readings = []
    try:
        for left_out in np.unique(region):
            kept = chosen[region != left_out]
            sums = sampling.estimate(
                lambda rows, kept=kept: unit_rows(kept[rows]), places_deg[kept], lag_width_rad
            )
            found = semivariogram.fit(sums, **how, max_lag_rad=max_lag_rad)
            readings.append((found.nugget / found.sill, np.log(found.range_km)))
    except BundleError:
        return fitted
    count = len(readings)
    half = student_t.ppf(0.975, count - 1) * np.sqrt(count - 1) * np.std(readings, axis=0)
    low, high = np.array([fitted.nugget / fitted.sill, np.log(fitted.range_km)]) + np.array([-half, half])
    step_km = np.array([-1.0, 1.0]) * rad_to_km(semivariogram.SLOPE_STEP_RAD)
    bounds = {
        "nugget": [max(0.0, low[0]), min(1.0, high[0])],
        "range_km": [*(np.exp([low[1], high[1]]) + step_km)],
    }
    return replace(fitted, intervals=bounds)


def sentence(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> str:
    """The curve in one sentence."""
    table = empirical.table()
    farthest = table["lag_km"].max()
    near, far = (100.0, 1_000.0) if farthest > 1_000.0 else (0.05 * farthest, 0.5 * farthest)
    at = np.interp([near, far], table["lag_km"], table["gamma"])
    measured = f"dissimilarity {at[0]:.2f} at {near:,.3g} km, {at[1]:.2f} at {far:,.4g} km"
    if not fitted.rises:
        return f"looks do not depend on distance here: {measured}"
    if fitted.intervals is not None:
        (low, high), (short, long) = fitted.intervals["nugget"], fitted.intervals["range_km"]
        measured += (
            f"; nugget's share of the sill {low:.2f} to {high:.2f}, range {short:,.0f} to {long:,.0f} km"
        )
    return (
        f"nugget {fitted.nugget:.2f} of a sill of {fitted.sill:.2f}; {measured}; "
        f"the fit explains {100 * fitted.r2:.0f} % of the lag means' variance"
    )


def load_empirical(path: Path) -> EmpiricalSemivariogram:
    """The sums saved at ``path`` (npz).

    Raises:
        BundleError: the file is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return EmpiricalSemivariogram(**{name: value[()] for name, value in stored.items()})
    except READING_ERRORS as error:
        said = f"{path}: not the sums of a semivariogram ({one_line(error)})"
        raise BundleError(f"{said}; run notebook 01") from error


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
    columns = ["parameter", "value", "unit", "meaning"]
    return pd.DataFrame(rows, columns=columns).round(4).set_index("parameter")


def range_table(fitted: FittedSemivariogram) -> pd.DataFrame:
    """The range by each rule, radians and kilometres; the one that the run uses is marked."""
    model = fitted.model()
    found = {name: of(model) for name, of in RANGE_RULES.items()}
    rows = [(name, rad, rad_to_km(rad), name == fitted.range_rule) for name, rad in found.items()]
    table = pd.DataFrame(rows, columns=["rule", "range_rad", "range_km", "used"])
    return table.round({"range_rad": 3, "range_km": 0})
