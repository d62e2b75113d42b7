"""The semivariogram of a run: estimated and fitted on its training photos, once, and read back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data import features, manifest
from lib.method import empirical, fitting, semivariogram
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.errors import BundleError
from lib.method.geodesy import rad_to_km
from lib.method.semivariogram import RANGE_RULES, FittedSemivariogram
from lib.runs import Run, cached, progress, writing
from lib.runs.files import READING_ERRORS, one_line
from lib.runs.machine import note

OPTIONS = {"family", "metric", "weights", "range_rule", "min_lag_rad", "max_lag_rad"}
"""Settings of a run that are options of :func:`lib.method.semivariogram.fit`."""


def fit_run(run: Run) -> tuple[EmpiricalSemivariogram, FittedSemivariogram]:
    """Estimate and fit on the training split alone, or reuse: empirical sums and fitted curve."""
    features.extract(run)
    used = run.settings.semivariogram.model_dump() | {"centred": run.settings.backbone.centred}
    cached(
        run, "semivariogram", lambda: _fit(run), code=[_fit], inputs=[run.manifest, run.features],
        outputs=[run.empirical, run.table("semivariogram"), run.semivariogram],
        settings=used | {"device": run.adding_device.type},
    )  # fmt: skip
    return load_empirical(run.empirical), FittedSemivariogram.load(run.semivariogram)


def _fit(run: Run) -> None:
    """Write the sums, their table and the fitted curve, which is flat where no rising curve fits."""
    settings, backbone = run.settings.semivariogram, run.settings.backbone
    photos = features.photos(run, manifest.PLACES)
    frozen, rows = features.read(run, photos), manifest.rows_of(photos, "train")
    rows = rows[empirical.draw_photos(len(rows), settings.max_photos, settings.seed)]
    sums = empirical.exact(
        lambda chosen: frozen.unit(rows[chosen]),
        manifest.coordinates(photos)[rows],
        settings.lag_width_rad,
        device=run.adding_device,
        progress=lambda starts: progress(starts, "semivariogram"),
    )
    with writing(run.empirical) as aside:
        np.savez(aside, **asdict(sums))
    with writing(run.table("semivariogram")) as aside:
        sums.table().to_csv(aside, index=False)
    about = {"backbone": backbone.name, "centred": backbone.centred, "photos": len(rows)}
    given = settings.model_dump(
        include={"family", "metric", "weights", "range_rule", "min_lag_rad", "max_lag_rad"}
    )
    try:
        fitted = semivariogram.fit(sums, **given, **about)
    except fitting.NoRise as error:
        fitted = semivariogram.flat(sums, **about)
        note(f"{error}; strategies that need the curve are left out")
    if fitted.rises and (fitted.family, fitted.weights) != (settings.family, settings.weights):
        said = f"semivariogram.family={settings.family} fits badly; with lags weighted by their pairs"
        note(f"{said}: {fitted.family}, {sentence(sums, fitted)}")
    with writing(run.semivariogram) as aside:
        fitted.save(aside)


def sentence(sums: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> str:
    """The curve in one sentence."""
    lag_km, gamma, pairs = sums.table()[["lag_km", "gamma", "pairs"]].to_numpy().T
    if not fitted.rises:
        said = "no curve that rises with distance beats a constant here, by Schwarz' criterion"
        mean = np.average(gamma, weights=pairs)
        return f"{said} over all {len(gamma):,} lags: mean dissimilarity {mean:.2f} at whatever distance"
    near, far = (100.0, 1_000.0) if lag_km.max() > 1_000.0 else (0.05 * lag_km.max(), 0.5 * lag_km.max())
    at = np.interp([near, far], lag_km, gamma)
    measured = f"dissimilarity {at[0]:.2f} at {near:,.3g} km, {at[1]:.2f} at {far:,.4g} km"
    nugget = f"nugget {fitted.nugget:.2f} of a sill of {fitted.sill:.2f}"
    return f"{nugget}; {measured}; the fit explains {100 * fitted.r2:.0f} % of the lag means' variance"


def load_empirical(path: Path) -> EmpiricalSemivariogram:
    """The sums saved at ``path`` (npz). BundleError: it has none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return EmpiricalSemivariogram(**{name: value[()] for name, value in stored.items()})
    except READING_ERRORS as error:
        said = f"{path}: not the sums of a semivariogram ({one_line(error)})"
        raise BundleError(f"{said}; delete it, and it is made again") from error


def parameters(fitted: FittedSemivariogram) -> pd.DataFrame:
    """The fit as a table for reading: value, unit and meaning of each parameter."""
    rows = [
        ("nugget", fitted.nugget, "cosine distance", "dissimilarity of photos of one place"),
        ("partial sill", fitted.partial_sill, "cosine distance", "what distance adds to it"),
        ("sill", fitted.sill, "cosine distance", "dissimilarity of unrelated photos"),
        ("length scale", rad_to_km(fitted.length_scale_rad), "km", "how fast the curve rises"),
        ("range", fitted.range_km, "km", f"where far begins, by the rule {fitted.range_rule}"),
        ("R2", fitted.r2, "", "explained share of the lag means' variance"),
    ]
    if fitted.exponent is not None:
        rows.insert(4, ("exponent", fitted.exponent, "", "shape of the rise"))
    table = pd.DataFrame(rows, columns=["parameter", "value", "unit", "meaning"])
    return table.round(4).set_index("parameter")


def range_table(fitted: FittedSemivariogram) -> pd.DataFrame:
    """The range by each rule, radians and kilometres; the one that the run uses is marked."""
    model = fitted.model()
    found = {name: of(model) for name, of in RANGE_RULES.items()}
    rows = [(name, rad, rad_to_km(rad), name == fitted.range_rule) for name, rad in found.items()]
    table = pd.DataFrame(rows, columns=["rule", "range_rad", "range_km", "used"])
    return table.round({"range_rad": 3, "range_km": 0})
