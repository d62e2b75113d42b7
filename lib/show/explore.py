"""Two pictures to explore in JupyterLab: the curve, and two strategies photo by photo.

In a notebook that somebody looks at, ipywidgets puts a control above each for every value that it is drawn
from. In the notebooks that ``run_all.sh`` executes it is static, drawn at the first values.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.data import datasets, features
from lib.evaluate import pairs
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.geodesy import km_to_rad
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.show import style
from lib.show.figures import pair_cloud
from lib.show.pages import PICTURES_ONLY
from lib.show.style import INK, look_of, named, styled

PLACES = ["latitude", "longitude", "predicted_latitude", "predicted_longitude"]


def interactive(draw: Callable[..., Figure], **controls: list[str] | tuple[float, ...]) -> Any:
    """The picture that ``draw`` makes, below its ipywidgets: lists of words, or a number's lowest,
    highest value and step. They start at the defaults of ``draw``."""
    if os.environ.get(PICTURES_ONLY):
        return draw()
    import ipywidgets

    box = ipywidgets.interactive(draw, {"auto_display": True}, **controls)
    for control in box.children[:-1]:
        control.continuous_update = False
    return box


def curve(cloud: pd.DataFrame, empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> Any:
    """A curve by hand, and what it calls each pair of :func:`lib.evaluate.pairs.sample`, the ``cloud``."""
    start = float(fitted.nugget), float(fitted.sill), float(fitted.range_km)

    def draw(nugget: float = start[0], sill: float = start[1], range_km: float = start[2]) -> Figure:
        drawn = by_hand(fitted, nugget, sill, range_km)
        return pair_cloud(pairs.classify(cloud, drawn), empirical, drawn)

    limits = {"nugget": (0.0, 1.0, 0.01), "sill": (0.05, 1.5, 0.01), "range_km": (50.0, 20_000.0, 50.0)}
    return interactive(draw, **limits)


def by_hand(fitted: FittedSemivariogram, nugget: float, sill: float, range_km: float) -> FittedSemivariogram:
    """``fitted`` with another nugget and sill, stretched along the distance to ``range_km``."""
    length = fitted.length_scale_rad * range_km / fitted.range_km
    shape = {"partial_sill": max(sill - nugget, 1e-3), "length_scale_rad": length}
    return replace(fitted, nugget=nugget, range_km=range_km, range_rad=km_to_rad(range_km), **shape)


def two_strategies(run: Run, predictions: pd.DataFrame, chosen: str = "") -> Any:
    """A photo, numbered as :func:`from_gain_to_loss` has them, and where each seed of two strategies puts it:
    at first a random photo, and the strategy ``chosen``. ``predictions`` are those of
    :func:`lib.evaluate.evaluation.evaluate`; the first split is shown."""
    predictions = predictions[predictions["split"] == predictions["split"].iloc[0]]
    names, last = predictions["strategy"].unique().tolist(), predictions["id"].nunique() - 1
    begin = int(np.random.default_rng(0).integers(last + 1)), chosen if chosen in names[1:] else names[:2][-1]
    paths, root = features.photos(run, ["id", "path"]).set_index("id")["path"], datasets.root_of(run)

    @styled
    def draw(strategy: str = begin[1], against: str = names[0], photo: int = begin[0]) -> Figure:
        gain = from_gain_to_loss(predictions, strategy, against)
        identity = gain.index[photo]
        figure = Figure(figsize=(10, 4.0), layout="constrained")
        beside, right = figure.subfigures(1, 2, width_ratios=[1, 2])
        style.show_photo(beside.subplots(), root, paths[identity], str(identity))
        axis, of_photo = style.world(right), predictions[predictions["id"] == identity]
        for name in dict.fromkeys((strategy, against)):
            rows, look = of_photo[of_photo["strategy"] == name], look_of(name)
            places = rows[PLACES].to_numpy()
            for ends in places.reshape(-1, 2, 2):
                axis.plot(*style.great_circle(ends), color=look["color"], lw=1.3)
            errors = ", ".join(f"{error:,.0f}" for error in np.sort(rows["error_km"]))
            marks = look | {"ls": "none", "ms": 7, "mec": "white", "label": f"{named(name)}: {errors} km"}
            axis.plot(*np.radians(places[:, :1:-1]).T, **marks)
        style.scatter(axis, of_photo.iloc[0], s=230, facecolors="none", edgecolors=INK, linewidths=1.8)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05))
        shares = f"in {(gain > 0).mean():.0%} of {len(gain):,} photos, farther in {(gain < 0).mean():.0%}"
        axis.set_title(f"{named(strategy)} is nearer than {named(against)} {shares}", fontsize=9)
        return figure

    return interactive(draw, strategy=names, against=names, photo=(0, last))


def from_gain_to_loss(predictions: pd.DataFrame, strategy: str, against: str) -> pd.Series:
    """Log of how much nearer ``strategy`` is than ``against``, by photo (id), the largest gain first. Errors
    in km are medians over seeds, and count as 1 km at least."""
    medians = predictions.groupby(["strategy", "id"])["error_km"].median().clip(lower=1.0)
    return np.log(medians[against] / medians[strategy]).sort_values(ascending=False, kind="stable")
