"""Three pictures to explore in JupyterLab: the curve and its weights, a photo's look-alikes, two strategies.

Each is a function that draws a Figure from data and a few values. In a notebook that somebody looks at,
ipywidgets puts a control above it for each value; everywhere else it is drawn once, at the first values.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.data import datasets, features
from lib.evaluate import pairs
from lib.method import negatives, semivariogram
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.fitting import FAMILIES
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, km_to_rad
from lib.method.semivariogram import Curve, FittedSemivariogram
from lib.runs import Run
from lib.show import figures
from lib.show.figures import INK, KIND_COLOURS, MUTED, PALETTE, _styled
from lib.show.pages import PICTURES_ONLY
from lib.show.world import great_circle

MOST_PHOTOS = 20_000
"""Training photos among which look-alikes are sought: their unit features are held in memory, 5 kB each."""
MOST_PAIRS = 5_000
"""Pairs that are weighed at every move."""
STRATEGIES = (
    "semivariogram", "hard_only", "false_only", "residual", "decayed", "semivariance_margin", "similarity",
)  # fmt: skip
"""Strategies whose log-weights follow from the distance and the dissimilarity of a pair alone."""
ORDERS = ("most gained", "most lost", "as they come")


def is_watched() -> bool:
    """Whether controls make sense: a Jupyter kernel with ipywidgets, and ``PICTURES_ONLY`` is not set."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return has_widgets and "ipykernel" in sys.modules and not os.environ.get(PICTURES_ONLY)


def interactive(draw: Callable[..., Figure], *data: Any, **controls: list[str] | tuple[float, ...]) -> Any:
    """The picture that ``draw`` makes of ``data`` under its ipywidgets; alone where nobody looks.

    Args:
        controls: a list of words to choose from, or first value, lowest, highest and step of a number.
    """
    if not is_watched():
        return draw(*data, **{name: control[0] for name, control in controls.items()})
    import ipywidgets

    def slider(name: str, value: float, low: float, high: float, step: float) -> ipywidgets.Widget:
        kind = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
        return kind(value, min=low, max=high, step=step, description=name, continuous_update=False)

    widgets = {name: one if isinstance(one, list) else slider(name, *one) for name, one in controls.items()}
    return ipywidgets.interactive(lambda **values: draw(*data, **values), {"auto_display": True}, **widgets)


def curve(
    run: Run, cloud: pd.DataFrame, empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram
) -> Any:
    """A curve by hand and the weights that follow; ``cloud`` is of :func:`lib.evaluate.pairs.sample`."""
    own = run.settings.training.own("semivariogram")[1]
    controls = {
        "family": [fitted.family, *(family for family in FAMILIES if family != fitted.family)],
        "nugget": (float(fitted.nugget), 0.0, 1.0, 0.01),
        "sill": (float(fitted.sill), 0.05, 1.5, 0.01),
        "range_km": (float(fitted.range_km), 50.0, 20_000.0, 50.0),
        "strategy": list(STRATEGIES),
        "alpha": (float(own.alpha), 0.0, 8.0, 0.125),
        "beta": (float(own.beta), 0.0, 12.0, 0.25),
    }
    few = cloud.iloc[:: max(1, len(cloud) // MOST_PAIRS)]
    return interactive(curve_figure, few, empirical, fitted, **controls)


def by_hand(
    empirical: EmpiricalSemivariogram,
    fitted: FittedSemivariogram,
    family: str,
    nugget: float,
    sill: float,
    range_km: float,
) -> FittedSemivariogram:
    """``fitted``, or the fit of another ``family``, stretched along the distance to ``range_km``."""
    if family != fitted.family:
        # few lags, so that the fit takes no time
        coarse = empirical.coarsened(max(1, len(empirical.pairs) // 150))
        fitted = semivariogram.fit(coarse, family=family, metric=fitted.metric, range_rule=fitted.range_rule)
    scale = fitted.length_scale_rad * range_km / fitted.range_km
    stretched = replace(
        fitted, length_scale_rad=scale, range_rad=range_km / EARTH_RADIUS_KM, range_km=range_km
    )
    return replace(stretched, nugget=nugget, partial_sill=max(sill - nugget, 1e-3))


def log_weights(seen: pd.DataFrame, drawn: Curve, strategy: str, alpha: float, beta: float) -> np.ndarray:
    """log w [P] that ``strategy`` gives the pairs of ``seen`` (distance_km, dissimilarity).

    The strategy sees one photo at 0° N 0° E, and P places along the equator whose unit features, of one
    dimension, make the pairs' dissimilarities.
    """
    east = np.rad2deg(km_to_rad(np.append(0.0, seen["distance_km"].to_numpy())))
    look = np.append(1.0, 1.0 - seen["dissimilarity"].to_numpy())
    places = torch.stack((torch.zeros(len(east), dtype=torch.float64), torch.tensor(east)), 1)
    unit = torch.tensor(look, dtype=torch.float32)[:, None]
    batch = negatives.Pairs(torch.zeros(1, len(east)), unit, places, drawn, alpha, beta)
    return negatives.get(strategy).reweight(batch).log_weight[0, 1:].numpy()


@_styled
def curve_figure(
    cloud: pd.DataFrame,
    empirical: EmpiricalSemivariogram,
    fitted: FittedSemivariogram,
    strategy: str,
    alpha: float,
    beta: float,
    **values: Any,
) -> Figure:
    """Left the lag means and the curve :func:`by_hand`; right the log-weights that a strategy gives."""
    drawn = by_hand(empirical, fitted, **values)
    seen = pairs.classify(cloud, drawn)
    seen["log_weight"] = log_weights(seen, Curve(drawn), strategy, alpha, beta)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = figures._shown_lags(empirical)
    left.plot(means["lag_km"], means["gamma"], ".", ms=2.6, color=PALETTE[1], label="mean of the lag")
    grid = np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 300)
    left.plot(grid, drawn.gamma(grid / EARTH_RADIUS_KM), color=INK, label="curve by hand")
    for level in (drawn.nugget, drawn.sill):
        left.axhline(level, color=MUTED, ls="--", lw=0.9)
    for kind, colour in KIND_COLOURS.items():
        points = seen.loc[seen["kind"] == kind, ["distance_km", "log_weight"]].to_numpy().T
        right.plot(*points, ".", ms=2.4, alpha=0.7, color=colour, label=kind)
    for axis in (left, right):
        axis.axvline(drawn.range_km, color=PALETTE[3], ls=":", lw=1.4)
        axis.set(xscale="log", xlim=(5.0, np.pi * EARTH_RADIUS_KM), xlabel="great-circle distance h, km")
        axis.xaxis.set_major_formatter(figures.KILOMETRES)
        axis.legend(loc="upper left", markerscale=2.5)
    left.set(ylim=(0.0, 1.5), ylabel="semivariance γ", title="curve")
    right.set(ylim=(-4.0, 8.0), ylabel="log weight of a negative", title=f"weights: {strategy}")
    return figure


def look_alikes(run: Run, fitted: FittedSemivariogram) -> Any:
    """A training photo, numbered from south to north, and the photos that look most like it."""
    manifest = datasets.read(run)
    rows = np.random.default_rng(0).permutation(datasets.manifest.rows_of(manifest, "train"))[:MOST_PHOTOS]
    rows = rows[np.argsort(manifest["latitude"].to_numpy()[rows], kind="stable")]
    photos, unit = manifest.iloc[rows], features.read(run, manifest).unit(rows)
    last = len(rows) - 1
    controls = {"photo": (len(rows) // 2, 0, last, 1), "count": (min(50, last), 7, min(500, last), 1)}
    return interactive(look_alike_figure, photos, unit, datasets.root_of(run), fitted, **controls)


def most_alike(
    photos: pd.DataFrame, unit: torch.Tensor, fitted: FittedSemivariogram, photo: int, count: int
) -> pd.DataFrame:
    """The ``count`` photos most like number ``photo``, the most alike first, with their kinds."""
    places = photos[["latitude", "longitude"]].to_numpy(np.float64)
    dissimilarity = (1.0 - unit @ unit[photo]).numpy()
    dissimilarity[photo] = np.inf
    number = np.argsort(dissimilarity, kind="stable")[:count]
    columns = {
        "distance_km": distance_km(places[photo], places[number]),
        "dissimilarity": dissimilarity[number],
    }
    return pairs.classify(photos.iloc[number].assign(**columns), fitted)


def _world_right(figure: Figure, ratio: float, rows: int, columns: int) -> tuple[np.ndarray, Axes]:
    """Axes [rows x columns] at the left of ``figure``; at its right a world map ``ratio`` times as wide."""
    beside, right = figure.subfigures(1, 2, width_ratios=[1, ratio])
    left = beside.subplots(rows, columns).ravel()
    axis = right.subplots(subplot_kw={"projection": "mollweide"})
    figures._world(axis)
    return left, axis


@_styled
def look_alike_figure(
    photos: pd.DataFrame, unit: torch.Tensor, root: Path, fitted: FittedSemivariogram, photo: int, count: int
) -> Figure:
    """A photo, its seven nearest look-alikes, and where on Earth all of :func:`most_alike` are, by kind."""
    found, chosen = most_alike(photos, unit, fitted, photo, count), photos.iloc[photo]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    (first, *others), axis = _world_right(figure, 1.2, 2, 4)
    figures._show(first, root, chosen["path"], figures._place_label(chosen["latitude"], chosen["longitude"]))
    for beside, one in zip(others, found.itertuples(), strict=False):
        expected = f"d {one.dissimilarity:.2f}\nexpected {one.gamma:.2f}"
        figures._show(beside, root, one.path, f"{one.distance_km:,.0f} km\n{expected}")
        beside.title.set(color=KIND_COLOURS[one.kind], fontsize=7.5)
    for (kind, colour), marker in zip(KIND_COLOURS.items(), "o^s", strict=True):
        there = found[found["kind"] == kind]
        figures._scatter(axis, there, color=colour, marker=marker, s=30, label=f"{kind}s ({len(there)})")
    figures._scatter(axis, chosen, color=INK, marker="*", s=180, label="the photo")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2)
    return figure


def two_strategies(run: Run, predictions: pd.DataFrame) -> Any:
    """Two strategies photo by photo; ``predictions`` are of :func:`lib.evaluate.evaluation.evaluate`."""
    splits, names = (predictions[column].unique().tolist() for column in ("split", "strategy"))
    last = int(predictions.groupby("split")["id"].nunique().max()) - 1
    controls = {"split": splits, "strategy": [*names[1:], names[0]], "against": names, "order": list(ORDERS)}
    paths = datasets.read(run).set_index("id")["path"]
    drawn = (two_strategies_figure, predictions, datasets.root_of(run), paths)
    return interactive(*drawn, **controls, photo=(0, 0, last, 1))


def errors_in_order(predictions: pd.DataFrame, strategy: str, against: str, order: str) -> pd.DataFrame:
    """Each photo's errors in km, medians over seeds, and the log of their ratio, in ``order``."""
    medians = predictions.groupby(["strategy", "id"])["error_km"].median().clip(lower=1.0)
    errors = pd.DataFrame({"ours": medians[strategy], "theirs": medians[against]})
    errors["gain"] = np.log(errors["theirs"] / errors["ours"])
    if order == "as they come":
        return errors
    return errors.sort_values("gain", ascending=order == "most lost", kind="stable")


@_styled
def two_strategies_figure(
    predictions: pd.DataFrame,
    root: Path,
    paths: pd.Series,
    split: str,
    strategy: str,
    against: str,
    order: str,
    photo: int,
) -> Figure:
    """The photo number ``photo`` in ``order``, its errors among those of the split, both predictions of it.

    Args:
        paths: of the photos below ``root``, by id.
    """
    of_split = predictions[predictions["split"] == split]
    errors = errors_in_order(of_split, strategy, against, order)
    identity = errors.index[min(photo, len(errors) - 1)]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    (above, cloud), axis = _world_right(figure, 2, 2, 1)
    figures._show(above, root, paths[identity], str(identity))
    cloud.loglog(errors["theirs"], errors["ours"], ".", ms=1.8, color="#94a3b8")
    cloud.loglog(*errors.loc[identity, ["theirs", "ours"]], "o", ms=8, mfc="none", mec=PALETTE[3], mew=1.8)
    cloud.axline((1, 1), (10, 10), color=MUTED, lw=0.9)
    cloud.set(xlabel=f"error of {against}, km", ylabel=f"error of {strategy}, km")
    for name, colour, marker in ((strategy, PALETTE[0], "o"), (against, INK, "^")):
        rows = of_split[(of_split["id"] == identity) & (of_split["strategy"] == name)]
        places = rows[["latitude", "longitude", "predicted_latitude", "predicted_longitude"]].to_numpy()
        for piece in [piece for row in places for piece in great_circle(row[:2], row[2:])]:
            axis.plot(*np.radians(piece[:, ::-1]).T, color=colour, lw=1.3)
        said = ", ".join(f"{error:,.0f}" for error in np.sort(rows["error_km"]))
        look = {"ms": 7, "mec": "white", "color": colour, "label": f"{name}: {said} km"}
        axis.plot(*np.radians(places[:, :1:-1]).T, marker, **look)
    figures._scatter(axis, rows.iloc[0], s=230, facecolors="none", edgecolors=INK, linewidths=1.8)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05))
    nearer, farther = (errors["gain"] > 0).mean(), (errors["gain"] < 0).mean()
    of_all = f"in {nearer:.0%} of {len(errors):,} photos, farther in {farther:.0%}"
    axis.set_title(f"{strategy} is nearer than {against} {of_all}", fontsize=9)
    return figure
