"""What people look at on paper: from data to a Figure; nothing is computed that a table should hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.evaluate.intervals import reported_radius_km
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.frequencies import UNITS_PER_RAD
from lib.method.geodesy import EARTH_RADIUS_KM, km_to_rad, rad_to_km
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import writing
from lib.show import style
from lib.show.style import INK, KIND_COLOURS, MUTED, PALETTE, look_of, named, panels, panels_by_split, styled
from lib.train.metrics import COMPARED, RADII_KM

HALF_EARTH_KM = np.pi * EARTH_RADIUS_KM
BESIDE = {"textcoords": "offset points", "fontsize": 8.5}


@styled
def save(figure: Figure, path: Path) -> Figure:
    """``figure``, after it was saved as PNG at ``path`` and as PDF beside it, whole or not at all."""
    for target, undated in ((path, "Software"), (path.with_suffix(".pdf"), "CreationDate")):
        with writing(target) as aside:
            figure.savefig(aside, metadata={undated: None})
        figure.set_layout_engine("none")  # found once; to find it again takes as long as to draw
    return figure


@styled
def photo_grid(manifest: pd.DataFrame, root: Path) -> Figure:
    """Random training photos with place names and coordinates."""
    training = manifest[manifest["split"] == "train"]
    figure, axes = panels(3, 6, (9.6, 5.85))
    for axis in axes.ravel():
        axis.set_axis_off()
    chosen = training.sample(min(18, len(training)), random_state=0)
    for axis, photo in zip(axes.ravel(), chosen.itertuples(), strict=False):
        near = f"near {photo.town}, {photo.country}" if getattr(photo, "town", "") else ""
        place = style.place_label(photo.latitude, photo.longitude)
        style.show_photo(axis, root, photo.path, f"{place}\n{near}")
    return figure


@styled
def places_map(manifest: pd.DataFrame) -> Figure:
    """World map of the places by split; equal-area."""
    figure = Figure(figsize=(9, 4.9), layout="constrained")
    axis, names = style.world(figure), set(manifest["split"])
    for split, frame in manifest.groupby("split", sort=False):
        look = {"s": 2.0 if split == "train" else 5.0, "color": style.SPLIT_COLOURS.get(split, MUTED)}
        style.scatter(axis, frame, label=f"{named(split, names)} ({len(frame):,})", **look)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.13), ncols=4, markerscale=2.5)
    return figure


@styled
def training_curves(histories: pd.DataFrame, radii: Sequence[int] = (25, 100, 200)) -> Figure:
    """Loss and validation accuracy by epoch: the mean over seeds as a line, the seeds' extremes as a band."""
    figure, axes = panels(1, 1 + len(radii), (3.0 * (1 + len(radii)), 3.3))
    shown = [("loss", 1.0, "training loss", "")]
    shown += [(f"validation_acc_{km}km", 100.0, f"validation within {km:,} km", "photos, %") for km in radii]
    for axis, (column, factor, title, unit) in zip(axes[0], shown, strict=True):
        for strategy, frame in histories.dropna(subset=[column]).groupby("strategy", sort=False):
            of_epoch, look = (factor * frame[column]).groupby(frame["epoch"]), look_of(strategy)
            low, mean, high = of_epoch.min(), of_epoch.mean(), of_epoch.max()
            axis.fill_between(mean.index, low, high, color=look["color"], alpha=0.18, lw=0)
            axis.plot(mean, label=named(strategy), ms=4, **look)
        axis.set(xlabel="epoch", title=title, ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    style.legend_below(figure, axes[0, 1])
    return figure


@styled
def semivariogram(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> Figure:
    """The paper's figure: lag means and fitted curve, linear and logarithmic; below them, pairs a lag.
    The linear panel shows about 150 of the lags; the fit used every one."""
    figure, axes = panels(2, 2, (10, 5.6), height_ratios=[4, 1], sharex="col")
    coarse = empirical.coarsened(max(1, len(empirical.pairs) // 150))
    for (upper, lower), sums, is_log in zip(axes.T, (coarse, empirical), (False, True), strict=True):
        lags = _shown_lags(sums)
        lag_km, mean, spread = lags["lag_km"], lags["gamma"], np.sqrt(lags["variance"])
        band = {"color": "#cbd5e1", "alpha": 0.5, "lw": 0, "label": "±1 standard deviation of the pairs"}
        upper.fill_between(lag_km, mean - spread, mean + spread, **band)
        upper.plot(lag_km, mean, ".", ms=3, color=PALETTE[1], label="mean of the lag")
        grid = np.geomspace(1e-3 if is_log else 1e-6, np.pi, 800)
        label = f"fit: {fitted.family}, R² {fitted.r2:.2f}"
        upper.plot(rad_to_km(grid), fitted.gamma(grid), color=INK, label=label)
        x, align, shift = (0.02, "left", -4) if is_log else (0.98, "right", 4)
        beside = {"transform": upper.get_yaxis_transform(), "ha": align, "va": "bottom", "fontsize": 8.5}
        upper.text(x, fitted.nugget, f"nugget {fitted.nugget:.3f} ", **beside)
        upper.text(x, fitted.sill, f"sill {fitted.sill:.3f} ", **beside)
        label = f"range ρ\n{fitted.range_km:,.0f} km\n{fitted.range_rad:.2f} rad "
        at, side = (fitted.range_km, 0.5 * fitted.sill), "right" if is_log else "left"
        upper.annotate(label, at, (shift, 0), color=PALETTE[3], ha=side, **BESIDE)
        _parameters(upper, fitted)
        lower.fill_between(lag_km, lags["pairs"], color="#94a3b8", step="mid", lw=0)
        width = f"pairs in\n{rad_to_km(sums.lag_width_rad):.0f} km"
        lower.set(xlabel="great-circle distance, km", ylabel=width, yscale="log", ylim=(10, None))
        lower.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        lower.xaxis.set_major_formatter(style.KILOMETRES)
    style.logarithmic_km(lower, xlim=(5.0, HALF_EARTH_KM))
    axes[0, 0].secondary_xaxis("top", functions=(km_to_rad, rad_to_km)).set_xlabel("radians")
    axes[0, 0].set_ylabel("semivariance γ (mean cosine distance)")
    axes[0, 0].legend(loc="center right", bbox_to_anchor=(1.0, 0.27))
    return figure


def _shown_lags(sums: EmpiricalSemivariogram) -> pd.DataFrame:
    """The lags of 30 pairs or more. Where fewer than ten have so many, as with few photos, all lags."""
    table = sums.table()
    return table[table["pairs"] >= 30] if (table["pairs"] >= 30).sum() >= 10 else table


def _parameters(axis: Axes, fitted: FittedSemivariogram, label: str = "") -> None:
    """Lines at nugget, sill and range."""
    for level in (fitted.nugget, fitted.sill):
        axis.axhline(level, color=MUTED, ls="--", lw=0.9)
    axis.axvline(fitted.range_km, color=PALETTE[3], ls=":", lw=1.4, label=label)


def _means_and_curve(
    axis: Axes, empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram, of_means: str, of_curve: str
) -> np.ndarray:
    """Lag means and fitted curve on ``axis`` under these labels; the kilometres at which it is drawn."""
    means, grid_km = _shown_lags(empirical), np.geomspace(5.0, HALF_EARTH_KM, 400)
    axis.plot(means["lag_km"], means["gamma"], ".", ms=2.8, color=PALETTE[1], label=of_means)
    axis.plot(grid_km, fitted.gamma(km_to_rad(grid_km)), color=INK, label=of_curve)
    return grid_km


@styled
def margin(
    empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram, beta: float, negatives: int = 255
) -> Figure:
    """Left how different photos look, by distance; right what the distance margin makes of it, and where the
    ``negatives`` of a photo are, on average over batches that are drawn at random."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplot_mosaic([["left", "right"], ["left", "lower"]], height_ratios=[2.6, 1])
    left, right, lower = axes["left"], axes["right"], axes["lower"]
    grid_km = _means_and_curve(left, empirical, fitted, "measured: mean of a lag", "fitted semivariogram")
    asked, look = beta * (1.0 - fitted.correlation(km_to_rad(grid_km))), look_of("semivariance_margin")
    right.plot(grid_km, asked, color=look["color"], label=named("semivariance_margin"))
    right.axhline(0.0, color=INK, ls="--", label=f"{named('infonce')}: none")
    for km in (50.0, 500.0, 5_000.0):
        there = float(np.interp(km, grid_km, asked))
        right.plot(km, there, "o", color=look["color"])
        right.annotate(f"{km:,.0f} km off:\nby {there:.1f}", (km, there), (5, -5), va="top", **BESIDE)
    lag_km, count = empirical.table()[["lag_km", "pairs"]].to_numpy().T
    count = negatives * count / count.sum()
    lower.hist(lag_km, np.geomspace(5.0, HALF_EARTH_KM, 37), weights=count, color="#94a3b8")
    near = f"{count[lag_km <= 500.0].sum():.2g} of {negatives:,}\nwithin 500 km"
    lower.axvline(500.0, color=MUTED, ls=":")
    lower.text(480.0, 0.95, near, transform=lower.get_xaxis_transform(), ha="right", va="top", fontsize=8.5)
    style.logarithmic_km(left, xlabel="distance between them, km", ylabel="dissimilarity of two photos")
    left.set(title="how different two photos look", ylim=(0.0, None))
    style.logarithmic_km(right, title="by how much a wrong place must lose", ylabel="margin, logits")
    style.logarithmic_km(lower, xlabel="distance of the wrong place from the right one, km")
    lower.set(ylabel="wrong places\nof a batch", xlim=right.get_xlim())
    left.legend(loc="lower right")
    right.legend(loc="upper left")
    return figure


@styled
def waves(kinds: Mapping[str, Tensor], nyquist: float) -> Figure:
    """Lengths of the waves in which a location encoder sees places, for ``kinds`` of frequencies [F, 2], and
    the shortest that the training places can tell, of frequency ``nyquist``."""
    figure, axes = panels(1, len(kinds), (3.4 * len(kinds), 2.6), sharey=True, sharex=True)
    shortest, label = _wave_km(nyquist), f"shortest that places tell: {_wave_km(nyquist):,.0f} km"
    for axis, (name, drawn) in zip(axes[0], kinds.items(), strict=True):
        length_km = _wave_km(drawn.norm(dim=1).numpy())
        axis.hist(length_km, np.geomspace(20.0, HALF_EARTH_KM, 40), color="#94a3b8")
        axis.axvline(shortest, color=PALETTE[3], ls="--", label=label)
        style.logarithmic_km(axis, xlabel="length of a wave, km", title=name)
        axis.text(0.97, 0.95, f"{np.mean(length_km < shortest):.0%} are shorter", transform=axis.transAxes,
                  ha="right", va="top", fontsize=8.5)  # fmt: skip
    axes[0, 0].set_ylabel(f"of {len(length_km)} waves")
    style.legend_below(figure, axes[0, 0])
    return figure


def _wave_km(frequency: float | np.ndarray) -> float | np.ndarray:
    return rad_to_km(1.0 / (np.maximum(frequency, 1e-3) * UNITS_PER_RAD))


@styled
def pair_cloud(
    pairs: pd.DataFrame, empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram, count: int = 10_000
) -> Figure:
    """About ``count`` of the sampled ``pairs`` in the colour of their kind; the lag means and the curve."""
    figure, ((axis,),) = panels(1, 1, (9.6, 4.4))
    shown = pairs.iloc[:: max(1, len(pairs) // count)]
    for kind, colour in KIND_COLOURS.items():
        of_kind = shown[shown["kind"] == kind]
        look = {"label": f"{kind}s ({len(of_kind) / len(shown):.0%} of the pairs shown)", "color": colour}
        axis.plot("distance_km", "dissimilarity", ".", data=of_kind, ms=2, rasterized=True, **look)
    _means_and_curve(axis, empirical, fitted, "mean of the lag", "γ(h): expected")
    _parameters(axis, fitted, "range")
    said = {"xlabel": "great-circle distance h, km", "ylabel": "semivariance γ; dissimilarity d of a pair"}
    style.logarithmic_km(axis, xlim=(5.0, HALF_EARTH_KM), ylim=(0.0, 1.5), **said)
    figure.legend(loc="outside right upper", markerscale=2.5)
    return figure


@styled
def pair_gallery(chosen: pd.DataFrame, manifest: pd.DataFrame, root: Path) -> Figure:
    """``chosen`` pairs of :func:`lib.evaluate.pairs.examples`: photos, distance, d and what was expected."""
    by_kind, width = chosen.groupby("kind", sort=False), int(chosen["kind"].value_counts().max())
    figure = Figure(figsize=(3.15 * width, 2.35 * len(by_kind)), layout="constrained")
    bands = np.atleast_1d(figure.subfigures(len(by_kind), 1, hspace=0.04))
    for band, (kind, of_kind) in zip(bands, by_kind, strict=True):
        band.suptitle(f"{kind}s", color=KIND_COLOURS[kind], fontweight="bold", fontsize=10.5)
        cells = np.atleast_1d(band.subfigures(1, width, wspace=0.09))
        for cell, pair in zip(cells, of_kind.itertuples(), strict=False):
            axes = cell.subplots(1, 2, gridspec_kw={"wspace": 0.0})
            for axis, photo in zip(axes, manifest.iloc[[pair.first, pair.second]].itertuples(), strict=True):
                place = style.place_label(photo.latitude, photo.longitude)
                style.show_photo(axis, root, photo.path, place)
            found = f"d = {pair.dissimilarity:.2f}, expected {pair.gamma:.2f}"
            cell.supxlabel(f"{pair.distance_km:,.0f} km apart\n{found}", fontsize=8.5)
    return figure


@styled
def error_distribution(predictions: pd.DataFrame) -> Figure:
    """Share of the photos within a distance, by strategy, all seeds pooled; one panel a split."""
    figure, splits = panels_by_split(predictions, 5.0, 3.8, sharey=True)
    for axis, _, rows in splits:
        for radius, name in RADII_KM.items():
            axis.axvline(radius, color=MUTED, lw=0.7, ls=":")
            axis.text(radius, 100.5, f" {name}", rotation=38, fontsize=7.5, color=MUTED, va="bottom")
        for turn, (name, errors) in enumerate(rows.groupby("strategy", sort=False)["error_km"]):
            marks = look_of(name) | {"ms": 4, "markevery": (0.03 * turn, 0.2), "lw": 1.2}
            percent = 100 * np.arange(1, len(errors) + 1) / len(errors)
            axis.plot(np.maximum(np.sort(errors), 0.5), percent, label=named(name), **marks)
        style.logarithmic_km(axis, xlim=(0.8, 20_100), ylim=(0, 100), xlabel="great-circle error, km")
        axis.set_title(f"{axis.get_title('left')}\n", pad=22)
    figure.axes[0].set_ylabel("photos within, %")
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(0.03, 1.0))
    return figure


@styled
def forest(comparison: pd.DataFrame, baseline: str = "infonce") -> Figure:
    """Paired differences to ``baseline`` in percentage points with 95 % intervals; one panel a split."""
    comparison = comparison[comparison["baseline"] == baseline]
    if comparison.empty:
        figure = Figure(figsize=(6, 1.6))
        said = f"nothing to compare with {named(baseline)} in this run"
        figure.text(0.5, 0.5, said, ha="center", color=MUTED)
        return figure
    names, ticks = comparison["strategy"].unique(), -np.arange(len(COMPARED))
    height, step = 0.6 + 0.24 * len(COMPARED) * (len(names) + 1), 1.0 / (len(names) + 1)
    figure, splits = panels_by_split(comparison, 5.0, height, sharex=True, sharey=True)
    for axis, _, of_split in splits:
        axis.axvline(0.0, color=INK, lw=1.0)
        for order, name in enumerate(names):
            rows = of_split[of_split["strategy"] == name].set_index("metric").loc[list(COMPARED)]
            middle, low, high = (100 * rows[column] for column in ("difference", "ci_low", "ci_high"))
            y, error = ticks - step * (order - (len(names) - 1) / 2), np.stack((middle - low, high - middle))
            look = look_of(name) | {"ls": "none", "ms": 5, "lw": 1.4}
            axis.errorbar(middle, y, xerr=error, label=named(name), **look)
        axis.set_xlabel(f"difference to {named(baseline)}, percentage points")
        axis.set_yticks(ticks, labels=[f"within {int(metric[4:-2]):,} km" for metric in COMPARED])
        axis.grid(axis="y", visible=False)
    style.legend_below(figure, figure.axes[0])
    return figure


@styled
def by_continent(table: pd.DataFrame) -> Figure:
    """Accuracies with 95 % intervals, of 5 photos or more; those without an interval are pale. ``table`` is
    that of :func:`lib.evaluate.intervals.levels_by_continent`."""
    table = table[table["n"] >= 5] if (table["n"] >= 5).any() else table
    names, groups = table["strategy"].unique(), sorted(set(table["continent"]), reverse=True)
    height = 1.0 + len(groups) * (0.15 + 0.12 * len(names))
    figure, splits = panels_by_split(table, 5.0, height, sharey=True)
    for axis, split, of_split in splits:
        for order, strategy in enumerate(names):
            frame = of_split[of_split["strategy"] == strategy]
            look = look_of(strategy) | {"ls": "none", "ms": 5}
            y = frame["continent"].map(groups.index) + 0.8 / len(names) * ((len(names) - 1) / 2 - order)
            low, middle, high = (100 * frame[name] for name in ("ci_low", "value", "ci_high"))
            is_sure, error = low.notna(), np.stack((middle - low, high - middle))
            axis.errorbar(middle, y, xerr=error, lw=1.1, **look | {"marker": ""})
            axis.plot(middle[is_sure], y[is_sure], label=named(strategy), **look)
            axis.plot(middle[~is_sure], y[~is_sure], alpha=0.3, **look)
        beside = {"transform": axis.get_yaxis_transform(), "fontsize": 8, "color": MUTED, "va": "center"}
        for group, count in of_split.groupby("continent")["n"].first().items():
            axis.text(1.02, groups.index(group), f"{count:,}", **beside)
        axis.text(1.02, len(groups) - 0.45, "photos", **beside)
        axis.set(xlabel=f"photos within {reported_radius_km(split)} km, %", ylim=(-0.55, len(groups) - 0.45))
        axis.set_yticks(range(len(groups)), labels=groups)
        for edge in np.arange(0.5, len(groups) - 1):
            axis.axhline(edge, color="#e5e7eb", lw=0.8)
        axis.grid(axis="y", visible=False)
    style.legend_below(figure, figure.axes[0])
    return figure


@styled
def answer(photo: pd.Series, root: Path) -> Figure:
    """``photo``, a row of predictions with its path below ``root``, beside a map: a ring at the true place, a
    cross at the answer, and the great circle between."""
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[1, 2])
    style.show_photo(figure.add_subplot(grid[0]), root, photo["path"], "the photo")
    axis = style.world(figure, grid[1])
    names = ["latitude", "longitude", "predicted_latitude", "predicted_longitude"]
    truth, found = photo[names].to_numpy(float).reshape(2, 2)
    axis.plot(*style.great_circle(np.stack((truth, found))), color=PALETTE[3], lw=1.2)
    ring = {"marker": "o", "mfc": "none", "ms": 11, "color": PALETTE[0]}
    cross = {"marker": "x", "color": PALETTE[3]}
    for place, look, said in ((truth, ring, "where it was taken"), (found, cross, "the model’s answer")):
        axis.plot(*np.radians(place[::-1]), **look, mew=1.8, ls="none", label=said)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    return figure


@styled
def candidates(table: pd.DataFrame, mass: pd.DataFrame, root: Path) -> Figure:
    """Each photo below ``root`` beside a map of its probability: 1 is the first candidate, a ring the truth.
    ``table`` and ``mass`` are those of :func:`lib.predict.predict.predict`."""
    photos = table["photo"].unique()
    figure = Figure(figsize=(8.6, 2.35 * len(photos)), layout="constrained")
    grid = figure.add_gridspec(len(photos), 2, width_ratios=[1, 2.4])
    for number, photo in enumerate(photos):
        first = table[table["photo"] == photo].sort_values("rank").iloc[0]
        is_known = np.isfinite(first["error_km"])
        title = f"candidate 1: {first['error_km']:,.0f} km off" if is_known else "true place unknown"
        style.show_photo(figure.add_subplot(grid[number, 0]), root, photo, title)
        axis = style.world(figure, grid[number, 1])
        heat = mass[mass["photo"] == photo].sort_values("probability")
        heat = heat[heat["probability"] > 0.01 * heat["probability"].max()]  # else all land is pale yellow
        shade = np.sqrt(heat["probability"] / heat["probability"].max())
        style.scatter(axis, heat, c=shade, cmap="YlOrRd", s=4.0 + 16.0 * shade, vmin=0.0, vmax=1.0)
        if is_known:
            truth = np.radians(first[["true_longitude", "true_latitude"]].astype(float))
            axis.scatter(*truth, s=230, facecolors="none", edgecolors=PALETTE[0], linewidths=1.8)
        badge = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        numeral = {"ha": "center", "va": "center", "fontsize": 7, "fontweight": "bold", "bbox": badge}
        axis.text(*np.radians([first["longitude"], first["latitude"]]), "1", color=INK, **numeral)
    shades = mpl.cm.ScalarMappable(mpl.colors.PowerNorm(0.5, 0.0, 100.0), "YlOrRd")
    said = "probability of a place, % of the photo’s likeliest (1: first candidate; ring: true place)"
    where = {"orientation": "horizontal", "shrink": 0.6, "pad": 0.01, "aspect": 40}
    bar = figure.colorbar(shades, ax=figure.axes, label=said, **where)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    return figure
