"""What people look at on paper: from data to a Figure; nothing is computed that a table should hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.data import places
from lib.data.photos import open_photo
from lib.data.sphere import EARTH_AREA_KM2
from lib.evaluate import pairs as pair_kinds
from lib.evaluate.intervals import HELD_OUT_ENDING, HELD_OUT_KM
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import writing
from lib.train.metrics import METRICS, RADII_KM

PALETTE = sns.color_palette("colorblind").as_hex()
INK, MUTED, LAND, WATER = "#1b1f24", "#6b7280", "#dfe3e6", "#ffffff"
STRATEGY_COLOURS = {
    "infonce": "#4d4d4d", "semivariogram": PALETTE[0], "decayed": PALETTE[2], "similarity": PALETTE[1],
    "false_only": PALETTE[4], "residual": PALETTE[9], "thesis": PALETTE[5], "geoclip_pretrained": "#6a3d9a",
    "semivariance_margin": PALETTE[3], "constant_offset": PALETTE[5], "hard_only": "#a16207",
    "distance_soft": PALETTE[4], "soft_targets": PALETTE[6], "hcl": PALETTE[8],
    "margin_frequencies": "#00796b",
}  # fmt: skip
SPLIT_COLOURS = {"train": "#9aa5b1", "validation": PALETTE[1], "test": PALETTE[0], "test_blocked": PALETTE[3]}
KIND_COLOURS = {
    pair_kinds.FALSE_NEGATIVE: PALETTE[0], pair_kinds.HARD_NEGATIVE: PALETTE[3], pair_kinds.EASY: MUTED,
}  # fmt: skip
KILOMETRES = mpl.ticker.StrMethodFormatter("{x:,.0f}")
METRIC_LABELS = {name: f"within {int(name[4:-2]):,} km" for name in METRICS if name.startswith("acc_")}
FOREST = ("acc_25km", "acc_100km", "acc_200km", "acc_750km", "acc_2500km")
PARALLELS = np.array([-60, -30, 0, 30, 60])
PARALLEL_LABELS = ["60°S", "30°S", "0°", "30°N", "60°N"]
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 200, "figure.facecolor": "white", "font.size": 9.5,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "legend.frameon": False, "axes.grid": True, "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.7,
}  # fmt: skip


def colour_of(strategy: str) -> str:
    """A strategy's colour, the same in every figure; one that is not listed takes one by its name."""
    return STRATEGY_COLOURS.get(strategy, PALETTE[crc32(strategy.encode()) % len(PALETTE)])


_styled = mpl.rc_context(STYLE)
"""Decorator: draw under ``STYLE`` and leave matplotlib's settings as they were."""


def _figure(
    rows: int, columns: int, size: tuple[float, float], **options: object
) -> tuple[Figure, np.ndarray]:
    """A constrained-layout Figure outside pyplot's global state, and its axes [rows, columns]."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _note(text: str) -> Figure:
    """A Figure that says why there is nothing to draw."""
    figure, axes = _figure(1, 1, (6, 1.6))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    return figure


def _by_split(
    table: pd.DataFrame, width: float, height: float, **options: object
) -> tuple[Figure, Iterator[tuple[Axes, str, pd.DataFrame]]]:
    """A Figure with one panel a split, and each panel's axes, split and rows of ``table``."""
    splits = table["split"].unique()
    figure, axes = _figure(1, len(splits), (width * len(splits), height), **options)
    rows = (table[table["split"] == split] for split in splits)
    return figure, zip(axes[0], splits, rows, strict=True)


def _legend_below(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=8)


@_styled
def save(figure: Figure, path: Path) -> Figure:
    """``figure``, after it was saved as PNG at ``path`` and as PDF beside it, whole or not at all."""
    for target, undated in ((path, "Software"), (path.with_suffix(".pdf"), "CreationDate")):
        with writing(target) as aside:
            figure.savefig(aside, metadata={undated: None})
        figure.set_layout_engine("none")  # found once; to find it again takes as long as to draw
    return figure


def _place_label(latitude: float, longitude: float) -> str:
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.1f}°{north} {abs(longitude):.1f}°{east}"


def _show(axis: Axes, root: Path, path: str, title: str) -> None:
    axis.imshow(open_photo(root, path, smallest_px=400))
    axis.set_title(title, fontsize=8, fontweight="normal", loc="center")
    axis.set_axis_off()


@_styled
def photo_grid(manifest: pd.DataFrame, root: Path) -> Figure:
    """Random training photos with place names and coordinates."""
    training = manifest[manifest["split"] == "train"]
    chosen = training.sample(min(18, len(training)), random_state=0)
    figure, axes = _figure(3, 6, (9.6, 5.85))
    for axis in axes.ravel()[len(chosen) :]:
        axis.set_axis_off()
    for axis, photo in zip(axes.ravel(), chosen.itertuples(), strict=False):
        town = getattr(photo, "town", "")
        label = _place_label(photo.latitude, photo.longitude)
        _show(axis, root, photo.path, f"{label}\nnear {town}, {photo.country}" if town else f"{label}\n")
    return figure


def _world(axis: Axes) -> None:
    """Land as a grey ground under a Mollweide (equal-area) map."""
    mask = places.land_mask()[::6, ::6].astype(float)
    longitude = np.deg2rad(np.linspace(-180, 180, mask.shape[1] + 1))
    latitude = np.deg2rad(np.linspace(-90, 90, mask.shape[0] + 1))
    colours = mpl.colors.ListedColormap([WATER, LAND])
    axis.pcolormesh(longitude, latitude, mask, cmap=colours, rasterized=True, zorder=0)
    axis.grid(True, linewidth=0.3)
    axis.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), labels=[])
    axis.set_yticks(np.deg2rad(PARALLELS), labels=PARALLEL_LABELS)


def _scatter(axis: Axes, frame: pd.DataFrame, **options: object) -> None:
    drawn = {"linewidths": 0.0, "rasterized": True, **options}
    axis.scatter(np.deg2rad(frame["longitude"]), np.deg2rad(frame["latitude"]), **drawn)


@_styled
def places_map(manifest: pd.DataFrame) -> Figure:
    """World map of the places by split; equal-area."""
    figure, axes = _figure(1, 1, (9, 4.9), subplot_kw={"projection": "mollweide"})
    axis = axes[0, 0]
    _world(axis)
    for split, frame in manifest.groupby("split", sort=False):
        look = {"s": 2.0 if split == "train" else 5.0, "color": SPLIT_COLOURS.get(split, MUTED)}
        _scatter(axis, frame, label=f"{split} ({len(frame):,})", **look)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.13), ncols=4, markerscale=2.5)
    return figure


@_styled
def density(manifest: pd.DataFrame, nearest_km: pd.DataFrame) -> Figure:
    """Training places per million km2 (equal-area grid); distance to the nearest training place, by split.

    Args:
        nearest_km: columns split, nearest_km.
    """
    figure, axes = _figure(1, 2, (10, 3.7), width_ratios=[1.35, 1])
    left, right = axes[0]
    train = manifest[manifest["split"] == "train"]
    cell = EARTH_AREA_KM2 / (36 * 18) / 1e6
    edges = np.linspace(-1, 1, 19), np.linspace(-180, 180, 37)
    counts, *_ = np.histogram2d(np.sin(np.deg2rad(train["latitude"])), train["longitude"], bins=edges)
    mesh = left.pcolormesh(*edges[::-1], np.where(counts > 0, counts / cell, np.nan), cmap="cividis")
    left.set_yticks(np.sin(np.deg2rad(PARALLELS)), labels=PARALLEL_LABELS)
    left.set(xlabel="longitude, degrees", title="training places per million km² (sea included)")
    left.set_xticks(range(-180, 181, 60))
    figure.colorbar(mesh, ax=left, shrink=0.85)
    for split, values in nearest_km.groupby("split", sort=False)["nearest_km"]:
        look = {"color": SPLIT_COLOURS.get(split, MUTED), "lw": 2.4 if split == "train" else 1.7}
        right.ecdf(np.maximum(values, 1.0), label=f"{split}: median {values.median():,.0f} km", **look)
    right.set(xscale="log", xlabel="distance to the nearest (other) training place, km")
    right.set(ylabel="share of the places", title="how far from the training places")
    right.xaxis.set_major_formatter(KILOMETRES)
    right.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2)
    return figure


@_styled
def training_curves(histories: pd.DataFrame, radii: Sequence[int] = (25, 100, 200)) -> Figure:
    """Loss and validation accuracy by epoch: the mean over seeds as a line, the seeds' extremes as a band."""
    figure, axes = _figure(1, 1 + len(radii), (3.0 * (1 + len(radii)), 3.3))
    columns = ["loss", *(f"validation_acc_{radius}km" for radius in radii)]
    titles = ["training loss", *(f"validation within {radius:,} km" for radius in radii)]
    for axis, column, title in zip(axes[0], columns, titles, strict=True):
        factor = 1.0 if column == "loss" else 100.0
        for strategy, frame in histories.dropna(subset=[column]).groupby("strategy", sort=False):
            mean, low, high = (frame.groupby("epoch")[column].agg(["mean", "min", "max"]) * factor).T.values
            epochs, colour = np.unique(frame["epoch"]), colour_of(strategy)
            axis.fill_between(epochs, low, high, color=colour, alpha=0.18, lw=0)
            axis.plot(epochs, mean, color=colour, label=strategy, marker="o", ms=3)
        axis.set(xlabel="epoch", title=title, ylabel="" if column == "loss" else "photos, %")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    _legend_below(figure, axes[0, 1])
    return figure


@_styled
def semivariogram(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> Figure:
    """The paper's figure: lag means and fitted curve, linear and logarithmic; below them, pairs a lag.

    The linear panel shows about 150 of the lags; the fit used every one.
    """
    figure, axes = _figure(2, 2, (10, 5.6), height_ratios=[4, 1], sharex="col")
    coarse = empirical.coarsened(max(1, len(empirical.pairs) // 150))
    for column, (sums, is_log) in enumerate([(coarse, False), (empirical, True)]):
        upper, lower = axes[:, column]
        lag_km, mean, variance, pairs = (
            _shown_lags(sums)[["lag_km", "gamma", "variance", "pairs"]].to_numpy().T
        )
        band = {"color": "#cbd5e1", "alpha": 0.5, "lw": 0, "label": "±1 standard deviation of the pairs"}
        upper.fill_between(lag_km, mean - np.sqrt(variance), mean + np.sqrt(variance), **band)
        size = 2.6 if is_log else 3.4
        upper.plot(lag_km, mean, ".", ms=size, color=PALETTE[1], label="mean of the lag")
        grid = np.geomspace(1e-3 if is_log else 1e-6, np.pi, 800)
        label = f"fit: {fitted.family}, R² {fitted.r2:.2f}"
        upper.plot(grid * EARTH_RADIUS_KM, fitted.gamma(grid), color=INK, label=label)
        _annotate_fit(upper, fitted, is_log)
        lower.fill_between(lag_km, pairs, color="#94a3b8", step="mid", lw=0)
        width = f"pairs in\n{sums.lag_width_rad * EARTH_RADIUS_KM:.0f} km"
        lower.set(xlabel="great-circle distance, km", ylabel=width, yscale="log")
        lower.set_ylim(10, None)
        lower.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        if is_log:
            lower.set_xscale("log")
            upper.set_xlim(5.0, np.pi * EARTH_RADIUS_KM)
        lower.xaxis.set_major_formatter(KILOMETRES)
    radians = (lambda km: km / EARTH_RADIUS_KM, lambda rad: rad * EARTH_RADIUS_KM)
    axes[0, 0].secondary_xaxis("top", functions=radians).set_xlabel("radians")
    axes[0, 0].set_ylabel("semivariance γ (mean cosine distance)")
    axes[0, 0].legend(loc="center right", bbox_to_anchor=(1.0, 0.27))
    return figure


def _shown_lags(sums: EmpiricalSemivariogram) -> pd.DataFrame:
    """The lags of 30 pairs or more, of which a mean says something; of few photos, all."""
    table = sums.table()
    return table[table["pairs"] >= 30] if (table["pairs"] >= 30).sum() >= 10 else table


def _annotate_fit(axis: Axes, fitted: FittedSemivariogram, is_log: bool) -> None:
    """Nugget, sill and range, drawn where they are read off."""
    x, align = (0.02, "left") if is_log else (0.98, "right")
    beside = {"transform": axis.get_yaxis_transform(), "ha": align, "va": "bottom", "fontsize": 8.5}
    for value, name in ((fitted.nugget, "nugget"), (fitted.sill, "sill")):
        axis.axhline(value, color=MUTED, ls="--", lw=0.9)
        axis.text(x, value, f"{name} {value:.3f} ", **beside)
    axis.axvline(fitted.range_km, color=PALETTE[3], ls=":", lw=1.4)
    label = f"range ρ\n{fitted.range_km:,.0f} km\n{fitted.range_rad:.2f} rad "
    side = {"ha": "right", "xytext": (-4, 0)} if is_log else {"ha": "left", "xytext": (4, 0)}
    look = {"textcoords": "offset points", "color": PALETTE[3], "fontsize": 8.5}
    axis.annotate(label, (fitted.range_km, 0.5 * fitted.sill), **look, **side)


@_styled
def margin(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram, beta: float) -> Figure:
    """Left how different photos look, by distance; right what ``semivariance_margin`` makes of it."""
    figure, axes = _figure(1, 2, (10, 3.5))
    left, right = axes[0]
    means, grid = _shown_lags(empirical), np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 400)
    left.plot(means["lag_km"], means["gamma"], ".", ms=2.6, color=PALETTE[1], label="measured: mean of a lag")
    left.plot(grid, fitted.gamma(grid / EARTH_RADIUS_KM), color=INK, label="fitted semivariogram")
    left.set(ylabel="dissimilarity of two photos", xlabel="distance between them, km", ylim=(0.0, None))
    left.set_title("how different two photos look")
    name = "semivariance_margin"
    asked, colour = beta * (1.0 - fitted.correlation(grid / EARTH_RADIUS_KM)), STRATEGY_COLOURS[name]
    right.plot(grid, asked, color=colour, label=name)
    right.axhline(0.0, color=STRATEGY_COLOURS["infonce"], label="infonce, GeoCLIP’s own loss: none")
    for km in (50.0, 500.0, 5_000.0):
        there = float(np.interp(km, grid, asked))
        right.plot(km, there, "o", color=colour)
        look = {"textcoords": "offset points", "va": "top", "fontsize": 8.5}
        right.annotate(f"{km:,.0f} km off:\nby {there:.1f}", (km, there), (5, -5), **look)
    right.set(ylabel="margin, logits", xlabel="distance of the wrong place from the right one, km")
    right.set_title("by how much a wrong place must lose")
    for axis in (left, right):
        axis.set(xscale="log")
        axis.xaxis.set_major_formatter(KILOMETRES)
        axis.legend(loc="lower right" if axis is left else "upper left")
    return figure


@_styled
def pair_cloud(pairs: pd.DataFrame, fitted: FittedSemivariogram) -> Figure:
    """Every sampled pair, distance against dissimilarity; the fitted curve, the three kinds of negative."""
    figure, axes = _figure(1, 1, (8.6, 4.6))
    axis = axes[0, 0]
    shown = pairs[pairs["distance_km"] >= 5.0]
    shades = {"bins": "log", "mincnt": 1, "cmap": sns.light_palette(INK, as_cmap=True), "lw": 0}
    points = shown["distance_km"], shown["dissimilarity"]
    cells = axis.hexbin(*points, xscale="log", gridsize=(90, 50), **shades)
    figure.colorbar(cells, ax=axis, label="sampled pairs", pad=0.01)
    grid = np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 600)
    axis.plot(grid, fitted.gamma(grid / EARTH_RADIUS_KM), color=PALETTE[1], lw=2.2, label="γ(h): expected")
    axis.axvline(fitted.range_km, color=PALETTE[3], ls=":", lw=1.4)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
    look = {"fontsize": 8.5, "fontweight": "bold", "bbox": box, "transform": axis.get_xaxis_transform()}
    for (kind, colour), x, y, align, text in zip(
        KIND_COLOURS.items(),
        (fitted.range_km * 0.85, 20_500.0, 5.6),
        (0.02, 0.02, 0.98),
        ("right", "right", "left"),
        ("look-alikes and near:\nfalse", "but far:\nhard", "less alike than expected:\neasy"),
        strict=True,
    ):
        above = "top" if kind == pair_kinds.EASY else "bottom"
        axis.text(x, y, f"{text} negatives", color=colour, ha=align, va=above, **look)
    axis.xaxis.set_major_formatter(KILOMETRES)
    axis.set(xlabel="great-circle distance h, km", ylabel="dissimilarity d (cosine distance)")
    axis.set_xlim(5, 21_000)
    axis.legend(loc="upper center", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


@_styled
def pair_gallery(chosen: pd.DataFrame, manifest: pd.DataFrame, root: Path) -> Figure:
    """Pairs of photos side by side with their distance, dissimilarity and what the curve expected.

    Args:
        chosen: rows of :func:`lib.evaluate.pairs.sample`, as many of each kind as there are columns.
    """
    kinds, width = chosen["kind"].unique(), int(chosen["kind"].value_counts().max())
    figure = Figure(figsize=(3.15 * width, 2.35 * len(kinds)), layout="constrained")
    bands = np.atleast_1d(figure.subfigures(len(kinds), 1, hspace=0.04))
    for band, kind in zip(bands, kinds, strict=True):
        band.suptitle(f"{kind}s", color=KIND_COLOURS[kind], fontweight="bold", fontsize=10.5)
        cells = np.atleast_1d(band.subfigures(1, width, wspace=0.09))
        for cell, pair in zip(cells, chosen[chosen["kind"] == kind].itertuples(), strict=False):
            axes = cell.subplots(1, 2, gridspec_kw={"wspace": 0.0})
            for axis, row in zip(axes, (pair.first, pair.second), strict=True):
                photo = manifest.iloc[row]
                _show(axis, root, photo["path"], _place_label(photo["latitude"], photo["longitude"]))
            found = f"d = {pair.dissimilarity:.2f}, expected {pair.gamma:.2f}"
            cell.supxlabel(f"{pair.distance_km:,.0f} km apart\n{found}", fontsize=8.5)
    return figure


@_styled
def weights_over_training(histories: pd.DataFrame) -> Figure:
    """What each strategy does to its negatives by epoch: quantiles of log w, shares emphasized and damped."""
    if "log_weight_q50" not in histories or histories["log_weight_q50"].isna().all():
        return _note("no weights to show: infonce leaves every negative as it is")
    weighted = histories.dropna(subset="log_weight_q50")
    names = weighted["strategy"].unique()
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(rows, columns, (2.9 * columns, 2.9 * rows), sharey=True)
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.ravel(), names, strict=False):
        frame = weighted[weighted["strategy"] == name].groupby("epoch").mean(numeric_only=True)
        colour = colour_of(name)
        for outer, alpha in (("01", 0.15), ("05", 0.25), ("25", 0.4)):
            low, high = frame[f"log_weight_q{outer}"], frame[f"log_weight_q{100 - int(outer):02d}"]
            axis.fill_between(frame.index, low, high, color=colour, alpha=alpha, lw=0)
        axis.plot(frame.index, frame["log_weight_q50"], color=colour, marker="o", ms=3)
        last = frame.iloc[-1]
        axis.set_title(f"{name}\n{last['emphasized']:.0%} up, {last['damped']:.0%} down", fontweight="normal")
        axis.axhline(0.0, color=INK, lw=0.8, zorder=0)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("log weight" + " (thesis: log factor)" * ("thesis" in names))
    return figure


@_styled
def error_distribution(predictions: pd.DataFrame) -> Figure:
    """Share of the photos within a distance, by strategy, all seeds pooled; one panel a split."""
    figure, panels = _by_split(predictions, 5.0, 3.8, sharey=True)
    look = {"rotation": 38, "fontsize": 7.5, "color": MUTED, "ha": "left", "va": "bottom"}
    for axis, split, rows in panels:
        for radius, name in RADII_KM.items():
            axis.axvline(radius, color=MUTED, lw=0.7, ls=":")
            axis.text(radius, 1.005, f" {name}", **look)
        for name, errors in rows.groupby("strategy", sort=False)["error_km"]:
            axis.ecdf(np.maximum(errors, 0.5), label=name, color=colour_of(name), lw=1.1)
        axis.set(xscale="log", xlim=(0.8, 20_100), ylim=(0, 1), xlabel="great-circle error, km")
        axis.xaxis.set_major_formatter(KILOMETRES)
        axis.set_title(f"split {split}\n", pad=22)
    figure.axes[0].set_ylabel("share of the photos within")
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(0.03, 1.0))
    return figure


@_styled
def forest(comparison: pd.DataFrame, baseline: str = "infonce") -> Figure:
    """Paired differences to ``baseline`` in percentage points with 95 % intervals; one panel a split."""
    comparison = comparison[comparison["baseline"] == baseline]
    if comparison.empty:
        return _note(f"nothing to compare with {baseline} in this run")
    names = comparison["strategy"].unique()
    height = 0.6 + 0.24 * len(FOREST) * (len(names) + 1)
    figure, panels = _by_split(comparison, 5.0, height, sharex=True, sharey=True)
    ticks, step = -np.arange(len(FOREST)), 1.0 / (len(names) + 1)
    for axis, split, of_split in panels:
        axis.axvline(0.0, color=INK, lw=1.0)
        for order, name in enumerate(names):
            rows = of_split[of_split["strategy"] == name].set_index("metric").loc[list(FOREST)]
            middle, low, high = (100 * rows[column] for column in ("difference", "ci_low", "ci_high"))
            y, error = ticks - step * (order - (len(names) - 1) / 2), np.stack((middle - low, high - middle))
            look = {"fmt": "o", "ms": 4, "lw": 1.4, "color": colour_of(name)}
            axis.errorbar(middle, y, xerr=error, label=name, **look)
        axis.set(title=f"split {split}", xlabel=f"difference to {baseline}, percentage points")
        axis.set_yticks(ticks, labels=[METRIC_LABELS[metric] for metric in FOREST])
        axis.grid(axis="y", visible=False)
    _legend_below(figure, figure.axes[0])
    return figure


@_styled
def by_group(table: pd.DataFrame, name: str) -> Figure:
    """Accuracy by group (column ``name``) of 5 photos or more and strategy, few photos pale; one panel a
    split, within :func:`telling_radius`."""
    table = table[table["n"] >= 5] if (table["n"] >= 5).any() else table
    names, is_band = table["strategy"].unique(), name == "latitude_band"
    groups = sorted(set(table[name]), key=_south if is_band else None, reverse=not is_band)
    figure, panels = _by_split(table, 5.0, 0.9 + 0.42 * len(groups), sharey=True)
    for axis, split, of_split in panels:
        for order, strategy in enumerate(names):
            frame = of_split[of_split["strategy"] == strategy]
            y = np.array([groups.index(group) for group in frame[name]]) + 0.16 * (
                (len(names) - 1) / 2 - order
            )
            look = {"color": colour_of(strategy), "alpha": np.where(frame["n"] >= 30, 0.95, 0.3)}
            axis.scatter(100 * frame[f"acc_{telling_radius(split)}km"], y, s=22, label=strategy, **look)
        beside = {"transform": axis.get_yaxis_transform(), "fontsize": 8, "color": MUTED, "va": "center"}
        for group, count in of_split.groupby(name)["n"].first().items():
            axis.text(1.02, groups.index(group), f"{count:,}", **beside)
        axis.text(1.02, len(groups) - 0.3, "photos", **beside)
        within = f"photos within {telling_radius(split)} km, %"
        axis.set(xlabel=within, title=f"split {split}", ylim=(-0.6, len(groups) - 0.4))
        axis.set_yticks(
            range(len(groups)), labels=[_band_label(group) if is_band else group for group in groups]
        )
    marks = [  # of their own: those of few photos are pale
        mpl.lines.Line2D([], [], ls="", marker="o", ms=5, color=colour_of(one), label=one) for one in names
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=8)
    return figure


def telling_radius(split: object) -> int:
    """Radius, km, that is told of a split: held-out cells have no training photo near."""
    return HELD_OUT_KM if str(split).endswith(HELD_OUT_ENDING) else 200


def _south(band: str) -> float:
    return float(band.partition("..")[0])


def _band_label(band: str) -> str:
    """``-60..-45`` as 60°S to 45°S."""
    edges = [float(edge) for edge in band.split("..")]
    return " to ".join(f"{abs(edge):.0f}°{'S' if edge < 0 else 'N' if edge > 0 else ''}" for edge in edges)


@_styled
def error_map(predictions: pd.DataFrame) -> Figure:
    """Where on Earth the errors are: median error over seeds of one strategy's photos, one map a split."""
    figure, panels = _by_split(predictions, 6.2, 3.3, subplot_kw={"projection": "mollweide"})
    colours = mpl.cm.ScalarMappable(mpl.colors.LogNorm(10, 10_000), "viridis_r")
    for axis, split, rows in panels:
        _world(axis)
        photos = rows.groupby("id")[["latitude", "longitude", "error_km"]].median().sort_values("error_km")
        look = {"norm": colours.norm, "cmap": colours.cmap, "s": 7}
        _scatter(axis, photos, c=np.maximum(photos["error_km"], 10.0), **look)
        axis.set_title(f"{' and '.join(rows['strategy'].unique())}, split {split}")
    bar = {"label": "error, km", "shrink": 0.7, "pad": 0.02, "extend": "both"}
    figure.colorbar(colours, ax=np.array([figure.axes]), **bar)
    return figure


@_styled
def factor_effect(factors: Sequence[float] = (1.0, 1.5, 2.0)) -> Figure:
    """Pressure of a negative over its logit z: e^(s z), whose factor turns round at 0, and w e^z."""
    figure, axes = _figure(1, 2, (9, 3.3), sharey=True)
    logit = np.linspace(-3.0, 3.0, 200)
    for factor, shade in zip(factors, ("#4d4d4d", PALETTE[0], PALETTE[3]), strict=False):
        axes[0, 0].plot(logit, np.exp(factor * logit), color=shade, label=f"s = {factor:g}")
        axes[0, 1].plot(logit, factor * np.exp(logit), color=shade, label=f"w = {factor:g}")
    for axis, title in zip(
        axes[0], ("logit multiplied (thesis)", "log-weight added (all others)"), strict=True
    ):
        axis.set(title=title, xlabel="logit z of the negative", yscale="log")
        axis.axvline(0.0, color=INK, lw=0.8)
        axis.legend(loc="upper left")
    axes[0, 0].set_ylabel("the negative's term in the loss")
    return figure


@_styled
def candidates(table: pd.DataFrame, mass: pd.DataFrame, root: Path) -> Figure:
    """Each photo beside a map of its probability: the first candidate numbered, the true place a ring.

    Args:
        table: rows photo, rank, latitude, longitude, true_latitude, true_longitude, error_km.
        mass: rows photo, latitude, longitude, probability.
        root: folder that the photos' names are relative to.
    """
    photos = table["photo"].unique()
    figure = Figure(figsize=(8.6, 2.35 * len(photos)), layout="constrained")
    grid = figure.add_gridspec(len(photos), 2, width_ratios=[1, 2.4])
    for number, photo in enumerate(photos):
        first = table[table["photo"] == photo].sort_values("rank").iloc[0]
        is_known = np.isfinite(first["error_km"])
        title = f"candidate 1: {first['error_km']:,.0f} km off" if is_known else "true place unknown"
        _show(figure.add_subplot(grid[number, 0]), root, photo, title)
        axis = figure.add_subplot(grid[number, 1], projection="mollweide")
        _world(axis)
        heat = mass[mass["photo"] == photo].sort_values("probability")
        shade = np.sqrt(heat["probability"] / heat["probability"].max())
        _scatter(axis, heat, c=shade, cmap="YlOrRd", s=4.0 + 16.0 * shade, vmin=0.0, vmax=1.0)
        if is_known:
            truth = {"latitude": first["true_latitude"], "longitude": first["true_longitude"]}
            _scatter(axis, truth, s=230, facecolors="none", edgecolors=PALETTE[0], linewidths=1.8)
        at = np.radians([first["longitude"], first["latitude"]])
        badge = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        centred = {"ha": "center", "va": "center", "color": INK, "bbox": badge}
        axis.text(*at, "1", fontsize=7, fontweight="bold", **centred)
    return figure
