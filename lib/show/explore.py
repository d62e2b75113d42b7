"""Three pictures to explore in JupyterLab: the curve, a photo's look-alikes, two strategies.

In a notebook that somebody looks at, ipywidgets puts a control above each for every value that it is drawn
from. Outside Jupyter it is static, drawn at the first values.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from lib.data import datasets, features
from lib.evaluate import pairs
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.geodesy import distance_km, km_to_rad
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.show import style
from lib.show.figures import pair_cloud
from lib.show.pages import PICTURES_ONLY
from lib.show.style import INK, KIND_COLOURS, great_circle, look_of, named, styled

SEARCHED_PHOTOS = 20_000
"""Look-alikes are sought among so many training photos: their unit features take 5 kB each in memory."""
PLACE = ["latitude", "longitude"]
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.05)}


def is_watched() -> bool:
    """Whether controls make sense: a Jupyter kernel with ipywidgets, and ``PICTURES_ONLY`` is not set."""
    is_kernel = "ipykernel" in sys.modules and not os.environ.get(PICTURES_ONLY)
    return is_kernel and importlib.util.find_spec("ipywidgets") is not None


def interactive(draw: Callable[..., Figure], **controls: list[str] | tuple[float, ...]) -> Any:
    """The picture that ``draw`` makes, below its ipywidgets: lists of words, or a number's lowest,
    highest value and step. They start at the defaults of ``draw``. Static outside Jupyter."""
    if not is_watched():
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


def look_alikes(run: Run, fitted: FittedSemivariogram) -> Any:
    """A training photo, numbered from south to north, seven look-alikes, and a map of :func:`most_alike`."""
    manifest, root = features.photos(run), datasets.root_of(run)
    rows = datasets.manifest.rows_of(manifest, "train")
    rows = np.random.default_rng(0).permutation(rows)[:SEARCHED_PHOTOS]
    rows = rows[np.argsort(manifest["latitude"].to_numpy()[rows], kind="stable")]
    photos, unit, last = manifest.iloc[rows], features.read(run, manifest).unit(rows), len(rows) - 1

    @styled
    def draw(photo: int = len(rows) // 2, count: int = min(50, last)) -> Figure:
        found, chosen = most_alike(photos, unit, fitted, photo, count), photos.iloc[photo]
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        beside, right = figure.subfigures(1, 2, width_ratios=[1, 1.2])
        first, *others = beside.subplots(2, 4).ravel()
        style.show_photo(first, root, chosen["path"], style.place_label(*chosen[PLACE]))
        for axis, one in zip(others, found.itertuples(), strict=False):
            title = f"{one.distance_km:,.0f} km\nd {one.dissimilarity:.2f}\nexpected {one.gamma:.2f}"
            style.show_photo(axis, root, one.path, title)
            axis.title.set(color=KIND_COLOURS[one.kind], fontsize=7.5)
        axis = style.world(right)
        for (kind, colour), marker in zip(KIND_COLOURS.items(), "o^s", strict=True):
            there = found[found["kind"] == kind]
            style.scatter(axis, there, color=colour, marker=marker, s=30, label=f"{kind}s ({len(there)})")
        style.scatter(axis, chosen, color=INK, marker="*", s=180, label="the photo")
        axis.legend(**BELOW, ncols=2)
        return figure

    return interactive(draw, photo=(0, last), count=(7, min(500, last)))


def most_alike(
    photos: pd.DataFrame, unit: torch.Tensor, fitted: FittedSemivariogram, photo: int, count: int
) -> pd.DataFrame:
    """The ``count`` photos most like number ``photo``, the most alike first, with their kinds."""
    places = photos[PLACE].to_numpy(np.float64)
    dissimilarity = (1.0 - unit @ unit[photo]).numpy()
    dissimilarity[photo] = np.inf
    number = np.argsort(dissimilarity, kind="stable")[:count]
    found = photos.iloc[number].assign(distance_km=distance_km(places[photo], places[number]))
    return pairs.classify(found.assign(dissimilarity=dissimilarity[number]), fitted)


def two_strategies(run: Run, predictions: pd.DataFrame, chosen: str = "") -> Any:
    """A photo, numbered as :func:`from_gain_to_loss` has them, and where each seed of two strategies puts it:
    at first a random photo, the strategy ``chosen`` and the first of ``predictions``, which are those of
    :func:`lib.evaluate.evaluation.evaluate`."""
    splits, names = (predictions[column].unique().tolist() for column in ("split", "strategy"))
    base, other = (names * 2)[:2]
    other = chosen if chosen in names[1:] else other
    last = int(predictions.groupby("split")["id"].nunique().max()) - 1
    begin = int(np.random.default_rng(0).integers(last + 1))
    paths, root = features.photos(run, ["id", "path"]).set_index("id")["path"], datasets.root_of(run)

    @styled
    def draw(
        split: str = splits[0], strategy: str = other, against: str = base, photo: int = begin
    ) -> Figure:
        of_split = predictions[predictions["split"] == split]
        gain = from_gain_to_loss(of_split, strategy, against)
        identity = gain.index[min(photo, len(gain) - 1)]
        figure = Figure(figsize=(10, 4.0), layout="constrained")
        beside, right = figure.subfigures(1, 2, width_ratios=[1, 2])
        style.show_photo(beside.subplots(), root, paths[identity], str(identity))
        axis, of_photo = style.world(right), of_split[of_split["id"] == identity]
        for name in dict.fromkeys((strategy, against)):
            rows, look = of_photo[of_photo["strategy"] == name], look_of(name)
            places = rows[[*PLACE, "predicted_latitude", "predicted_longitude"]].to_numpy()
            for row in places:
                axis.plot(
                    *np.radians(great_circle(row.reshape(2, 2))[:, ::-1]).T, color=look["color"], lw=1.3
                )
            errors = ", ".join(f"{error:,.0f}" for error in np.sort(rows["error_km"]))
            marks = look | {"ls": "none", "ms": 7, "mec": "white", "label": f"{named(name)}: {errors} km"}
            axis.plot(*np.radians(places[:, :1:-1]).T, **marks)
        style.scatter(axis, of_photo.iloc[0], s=230, facecolors="none", edgecolors=INK, linewidths=1.8)
        axis.legend(**BELOW)
        shares = f"in {(gain > 0).mean():.0%} of {len(gain):,} photos, farther in {(gain < 0).mean():.0%}"
        axis.set_title(f"{named(strategy)} is nearer than {named(against)} {shares}", fontsize=9)
        return figure

    return interactive(draw, split=splits, strategy=names, against=names, photo=(0, last))


def from_gain_to_loss(predictions: pd.DataFrame, strategy: str, against: str) -> pd.Series:
    """Log of how much nearer ``strategy`` is than ``against``, by photo (id), the largest gain first. Errors
    in km are medians over seeds, and count as 1 km at least."""
    medians = predictions.groupby(["strategy", "id"])["error_km"].median().clip(lower=1.0)
    return np.log(medians[against] / medians[strategy]).sort_values(ascending=False, kind="stable")
