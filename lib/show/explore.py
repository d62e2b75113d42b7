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
from matplotlib.figure import Figure

from lib.data import datasets, features
from lib.evaluate import pairs
from lib.method import negatives, semivariogram
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, km_to_rad
from lib.method.semivariogram import Curve, FittedSemivariogram
from lib.runs import Run
from lib.show.figures import (
    INK,
    KILOMETRES,
    KIND_COLOURS,
    MUTED,
    PALETTE,
    _place_label,
    _scatter,
    _show,
    _styled,
    _world,
)
from lib.show.maps import great_circle

PICTURES_ONLY = "SEMIVARIOGRAM_PICTURES_ONLY"
"""Environment variable that :mod:`lib.pipeline` sets for its kernels: pictures instead of controls."""
MOST_PHOTOS = 20_000
"""Training photos among which look-alikes are sought: their unit features are held in memory, 5 kB each."""
MOST_PAIRS = 5_000
"""Pairs that are weighed at every move."""
FAMILIES = ("Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational")
STRATEGIES = (
    "semivariogram",
    "hard_only",
    "false_only",
    "residual",
    "decayed",
    "semivariance_margin",
    "similarity",
)
"""Strategies whose log-weights follow from the distance and the dissimilarity of a pair alone."""
ORDERS = ("most gained", "most lost", "as they come")


def is_watched() -> bool:
    """Whether controls make sense: this is a Jupyter kernel with ipywidgets, and ``PICTURES_ONLY`` is not
    set."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return has_widgets and "ipykernel" in sys.modules and not os.environ.get(PICTURES_ONLY)


def interactive(draw: Callable[..., Figure], *data: Any, **controls: list[str] | tuple[float, ...]) -> Any:
    """A box of ipywidgets with the picture that ``draw`` makes of ``data``; the picture alone where nobody
    looks.

    Args:
        controls: a list of words to choose from, or first value, lowest, highest and step of a number.
    """
    if not is_watched():
        return draw(*data, **{name: control[0] for name, control in controls.items()})
    import ipywidgets

    def figure(**values: Any) -> Figure:
        """The picture at ``values``."""
        return draw(*data, **values)

    def slider(name: str, value: float, low: float, high: float, step: float) -> ipywidgets.Widget:
        kind = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
        return kind(value, min=low, max=high, step=step, description=name, continuous_update=False)

    widgets = {name: one if isinstance(one, list) else slider(name, *one) for name, one in controls.items()}
    return ipywidgets.interactive(figure, {"auto_display": True}, **widgets)


def curve(
    run: Run, cloud: pd.DataFrame, empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram
) -> Any:
    """A curve by hand, and the weight of a negative that follows; ``cloud`` is of
    :func:`lib.evaluate.pairs.sample`."""
    own = run.settings.training.own("semivariogram")[1]
    return interactive(
        curve_figure,
        cloud.iloc[:: max(1, len(cloud) // MOST_PAIRS)],
        empirical,
        fitted,
        family=[fitted.family, *(family for family in FAMILIES if family != fitted.family)],
        nugget=(float(fitted.nugget), 0.0, 1.0, 0.01),
        sill=(float(fitted.sill), 0.05, 1.5, 0.01),
        range_km=(float(fitted.range_km), 50.0, 20_000.0, 50.0),
        strategy=list(STRATEGIES),
        alpha=(float(own.alpha), 0.0, 8.0, 0.125),
        beta=(float(own.beta), 0.0, 12.0, 0.25),
    )


def by_hand(
    empirical: EmpiricalSemivariogram,
    fitted: FittedSemivariogram,
    family: str,
    nugget: float,
    sill: float,
    range_km: float,
) -> FittedSemivariogram:
    """A curve of ``family``, stretched along the distance to ``range_km``; of another family than ``fitted``
    its own fit."""
    if family != fitted.family:
        coarse = empirical.coarsened(
            max(1, len(empirical.pairs) // 150)
        )  # few lags, so that the fit takes no time
        fitted = semivariogram.fit(coarse, family=family, metric=fitted.metric, range_rule=fitted.range_rule)
    return replace(
        fitted,
        nugget=nugget,
        partial_sill=max(sill - nugget, 1e-3),
        length_scale_rad=fitted.length_scale_rad * range_km / fitted.range_km,
        range_rad=range_km / EARTH_RADIUS_KM,
        range_km=range_km,
    )


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
    """Left the lag means and the curve :func:`by_hand`; right the log-weights that a strategy gives the
    pairs."""
    drawn = by_hand(empirical, fitted, **values)
    seen = pairs.classify(cloud, drawn)
    seen["log_weight"] = log_weights(seen, Curve(drawn), strategy, alpha, beta)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = empirical.table().query("pairs >= 30")
    left.plot(means["lag_km"], means["gamma"], ".", ms=2.6, color=PALETTE[1], label="mean of the lag")
    grid = np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 300)
    left.plot(grid, drawn.gamma(grid / EARTH_RADIUS_KM), color=INK, label="curve by hand")
    for level in (drawn.nugget, drawn.sill):
        left.axhline(level, color=MUTED, ls="--", lw=0.9)
    for kind, colour in KIND_COLOURS.items():
        of_kind = seen[seen["kind"] == kind]
        right.plot(
            of_kind["distance_km"], of_kind["log_weight"], ".", ms=2.4, alpha=0.7, color=colour, label=kind
        )
    for axis in (left, right):
        axis.axvline(drawn.range_km, color=PALETTE[3], ls=":", lw=1.4)
        axis.set(xscale="log", xlim=(5.0, np.pi * EARTH_RADIUS_KM), xlabel="great-circle distance h, km")
        axis.xaxis.set_major_formatter(KILOMETRES)
        axis.legend(loc="upper left", markerscale=2.5)
    left.set(ylim=(0.0, 1.5), ylabel="semivariance γ", title="curve")
    right.set(ylim=(-4.0, 8.0), ylabel="log weight of a negative", title=f"weights: {strategy}")
    return figure


def look_alikes(run: Run, fitted: FittedSemivariogram) -> Any:
    """A training photo, numbered from south to north, and the photos that look most like it."""
    manifest = datasets.read(run)
    rows = np.random.default_rng(0).permutation(datasets.manifest.rows_of(manifest, "train"))[:MOST_PHOTOS]
    rows = rows[np.argsort(manifest["latitude"].to_numpy()[rows], kind="stable")]
    return interactive(
        look_alike_figure,
        manifest.iloc[rows],
        features.read(run, manifest).unit(rows),
        datasets.root_of(run),
        fitted,
        photo=(len(rows) // 2, 0, len(rows) - 1, 1),
        count=(min(50, len(rows) - 1), 7, min(500, len(rows) - 1), 1),
    )


def most_alike(
    photos: pd.DataFrame, unit: torch.Tensor, fitted: FittedSemivariogram, photo: int, count: int
) -> pd.DataFrame:
    """The ``count`` photos that look most like number ``photo``, the most alike first, as ``pairs.classify``
    sees them."""
    places = photos[["latitude", "longitude"]].to_numpy(np.float64)
    dissimilarity = (1.0 - unit @ unit[photo]).numpy()
    dissimilarity[photo] = np.inf
    number = np.argsort(dissimilarity, kind="stable")[:count]
    columns = {
        "distance_km": distance_km(places[photo], places[number]),
        "dissimilarity": dissimilarity[number],
    }
    return pairs.classify(photos.iloc[number].assign(**columns), fitted)


@_styled
def look_alike_figure(
    photos: pd.DataFrame, unit: torch.Tensor, root: Path, *arguments: Any, **values: int
) -> Figure:
    """A photo, its seven nearest look-alikes, and where on Earth all that :func:`most_alike` finds are, by
    kind."""
    found, photo = most_alike(photos, unit, *arguments, **values), photos.iloc[values["photo"]]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    beside, right = figure.subfigures(1, 2, width_ratios=[1, 1.2])
    first, *others = beside.subplots(2, 4).ravel()
    _show(first, root, photo["path"], _place_label(photo["latitude"], photo["longitude"]))
    for axis, one in zip(others, found.itertuples(), strict=False):
        _show(
            axis,
            root,
            one.path,
            f"{one.distance_km:,.0f} km\nd {one.dissimilarity:.2f}\nexpected {one.gamma:.2f}",
        )
        axis.title.set(color=KIND_COLOURS[one.kind], fontsize=7.5)
    axis = right.subplots(subplot_kw={"projection": "mollweide"})
    _world(axis)
    for (kind, colour), marker in zip(KIND_COLOURS.items(), "o^s", strict=True):
        there = found[found["kind"] == kind]
        _scatter(axis, there, color=colour, marker=marker, s=30, label=f"{kind}s ({len(there)})")
    _scatter(axis, photo, color=INK, marker="*", s=180, label="the photo")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2)
    return figure


def two_strategies(run: Run, predictions: pd.DataFrame) -> Any:
    """Two strategies photo by photo; ``predictions`` are of :func:`lib.evaluate.evaluation.evaluate`."""
    splits, names = (list(dict.fromkeys(predictions[column])) for column in ("split", "strategy"))
    return interactive(
        two_strategies_figure,
        predictions,
        datasets.root_of(run),
        datasets.read(run).set_index("id")["path"],
        split=splits,
        strategy=[*names[1:], names[0]],
        against=names,
        order=list(ORDERS),
        photo=(0, 0, int(predictions.groupby("split")["id"].nunique().max()) - 1, 1),
    )


def errors_in_order(predictions: pd.DataFrame, strategy: str, against: str, order: str) -> pd.DataFrame:
    """Errors in km of both strategies, medians over seeds, and the log of their ratio: a row a photo, in
    ``order``."""
    medians = predictions.groupby(["strategy", "id"])["error_km"].median().clip(lower=1.0)
    errors = pd.DataFrame({"ours": medians[strategy], "theirs": medians[against]})
    errors["gain"] = np.log(errors["theirs"] / errors["ours"])
    is_sorted = order != "as they come"
    return errors.sort_values("gain", ascending=order == "most lost", kind="stable") if is_sorted else errors


@_styled
def two_strategies_figure(
    predictions: pd.DataFrame, root: Path, paths: pd.Series, split: str, photo: int, **values: str
) -> Figure:
    """A photo, its errors among those of the split, and both strategies' predictions of it.

    Args:
        paths: of the photos below ``root``, by id.
        photo: position in the order.
        values: strategy, against, order.
    """
    of_split = predictions[predictions["split"] == split]
    errors = errors_in_order(of_split, **values)
    identity = errors.index[min(photo, len(errors) - 1)]
    names = values["strategy"], values["against"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    beside, right = figure.subfigures(1, 2, width_ratios=[1, 2])
    above, cloud = beside.subplots(2, 1)
    _show(above, root, paths[identity], str(identity))
    cloud.loglog(errors["theirs"], errors["ours"], ".", ms=1.8, color="#94a3b8")
    cloud.loglog(*errors.loc[identity, ["theirs", "ours"]], "o", ms=8, mfc="none", mec=PALETTE[3], mew=1.8)
    cloud.axline((1, 1), (10, 10), color=MUTED, lw=0.9)
    cloud.set(xlabel=f"error of {names[1]}, km", ylabel=f"error of {names[0]}, km")
    axis = right.subplots(subplot_kw={"projection": "mollweide"})
    _world(axis)
    for name, colour, marker in zip(names, (PALETTE[0], INK), "o^", strict=True):
        rows = of_split[(of_split["id"] == identity) & (of_split["strategy"] == name)]
        places = rows[["latitude", "longitude", "predicted_latitude", "predicted_longitude"]].to_numpy()
        for piece in [piece for row in places for piece in great_circle(row[:2], row[2:])]:
            axis.plot(*np.radians(piece[:, ::-1]).T, color=colour, lw=1.3)
        said = ", ".join(f"{error:,.0f}" for error in np.sort(rows["error_km"]))
        axis.plot(
            *np.radians(places[:, :1:-1]).T,
            marker,
            ms=7,
            mec="white",
            color=colour,
            label=f"{name}: {said} km",
        )
    _scatter(axis, rows.iloc[0], s=230, facecolors="none", edgecolors=INK, linewidths=1.8)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05))
    nearer, farther = (errors["gain"] > 0).mean(), (errors["gain"] < 0).mean()
    of_all = f"in {nearer:.0%} of {len(errors):,} photos, farther in {farther:.0%}"
    axis.set_title(f"{names[0]} is nearer than {names[1]} {of_all}", fontsize=9)
    return figure
