"""What people look at on paper. A function takes data and returns a Figure; nothing is computed that a table
should hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

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
from lib.method.empirical import EmpiricalSemivariogram
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import writing
from lib.train.metrics import METRICS, RADII_KM

PALETTE = sns.color_palette("colorblind").as_hex()
INK, MUTED, LAND, WATER = "#1b1f24", "#6b7280", "#dfe3e6", "#ffffff"
STRATEGY_COLOURS = {
    "infonce": "#4d4d4d", "semivariogram": PALETTE[0], "decayed": PALETTE[2], "similarity": PALETTE[1],
    "false_only": PALETTE[4], "residual": PALETTE[9], "thesis": PALETTE[5],
    "geoclip_pretrained": "#6a3d9a", "semivariance_margin": PALETTE[3], "constant_offset": PALETTE[5],
    "hard_only": "#a16207",
    "distance_soft": PALETTE[4], "soft_targets": PALETTE[6], "hcl": PALETTE[8],
}  # fmt: skip
SPLIT_COLOURS = {"train": "#9aa5b1", "validation": PALETTE[1], "test": PALETTE[0], "test_blocked": PALETTE[3]}
KIND_COLOURS = {
    pair_kinds.FALSE_NEGATIVE: PALETTE[0], pair_kinds.HARD_NEGATIVE: PALETTE[3], pair_kinds.EASY: MUTED,
}  # fmt: skip
KILOMETRES = mpl.ticker.StrMethodFormatter("{x:,.0f}")
METRIC_LABELS = {name: f"within {int(name[4:-2]):,} km" for name in METRICS if name.startswith("acc_")}
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 200, "figure.facecolor": "white", "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9.5, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.grid": True, "grid.color": "#e5e7eb", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "lines.linewidth": 1.7,
}  # fmt: skip


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


def _styled(function):
    """Draw under ``STYLE`` and leave matplotlib's settings as they were."""
    import functools

    @functools.wraps(function)
    def draw(*arguments: object, **named: object) -> Figure:
        with mpl.rc_context(STYLE):
            return function(*arguments, **named)

    return draw


def save(figure: Figure, path: Path) -> Figure:
    """Save ``figure`` as PNG at ``path`` and as PDF beside it, whole or not at all; return it for the
    notebook to show."""
    with mpl.rc_context(STYLE):
        for target in (path, path.with_suffix(".pdf")):
            metadata = {"CreationDate": None} if target.suffix == ".pdf" else {"Software": None}
            with writing(target) as aside:
                figure.savefig(aside, metadata=metadata)
    return figure


def _place_label(latitude: float, longitude: float) -> str:
    return (
        f"{abs(latitude):.1f}°{'N' if latitude >= 0 else 'S'} "
        f"{abs(longitude):.1f}°{'E' if longitude >= 0 else 'W'}"
    )


def _show(axis: Axes, root: Path, path: str, title: str) -> None:
    axis.imshow(open_photo(root, path, smallest_px=400))
    axis.set_title(title, fontsize=8, fontweight="normal", loc="center")
    axis.set_axis_off()


@_styled
def photo_grid(manifest: pd.DataFrame, root: Path, rows: int = 3, columns: int = 6, seed: int = 0) -> Figure:
    """Random training photos with place names and coordinates."""
    training = manifest[manifest["split"] == "train"]
    chosen = training.sample(min(rows * columns, len(training)), random_state=seed)
    figure, axes = _figure(rows, columns, (1.6 * columns, 1.95 * rows))
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
    axis.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), labels=["60°S", "30°S", "0°", "30°N", "60°N"])


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
        size = 2.0 if split == "train" else 5.0
        _scatter(
            axis, frame, s=size, color=SPLIT_COLOURS.get(split, MUTED), label=f"{split} ({len(frame):,})"
        )
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.13), ncols=4, markerscale=2.5)
    return figure


@_styled
def density(manifest: pd.DataFrame, nearest_km: pd.DataFrame) -> Figure:
    """Left: training places per million km2 (equal-area grid). Right: distance to the nearest training place,
    by split.

    Args:
        nearest_km: columns split, nearest_km.
    """
    figure, axes = _figure(1, 2, (10, 3.7), width_ratios=[1.35, 1])
    train = manifest[manifest["split"] == "train"]
    left, right = axes[0]
    cell = EARTH_AREA_KM2 / (36 * 18) / 1e6
    counts, _, _ = np.histogram2d(
        np.sin(np.deg2rad(train["latitude"])), train["longitude"], bins=(18, 36), range=((-1, 1), (-180, 180))
    )
    mesh = left.pcolormesh(
        np.linspace(-180, 180, 37),
        np.linspace(-1, 1, 19),
        np.where(counts > 0, counts / cell, np.nan),
        cmap="cividis",
    )
    left.set_yticks(np.sin(np.deg2rad([-60, -30, 0, 30, 60])), labels=["60°S", "30°S", "0°", "30°N", "60°N"])
    left.set(
        xlabel="longitude, degrees",
        title="training places per million km² (sea included)",
        xticks=range(-180, 181, 60),
    )
    figure.colorbar(mesh, ax=left, shrink=0.85)
    for split, values in nearest_km.groupby("split", sort=False)["nearest_km"]:
        label = f"{split}: median {values.median():,.0f} km"
        colour = SPLIT_COLOURS.get(split, MUTED)
        right.ecdf(np.maximum(values, 1.0), label=label, color=colour, lw=2.4 if split == "train" else 1.7)
    right.set(
        xscale="log",
        xlabel="distance to the nearest (other) training place, km",
        ylabel="share of the places",
    )
    right.set_title("how far from the training places")
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
            by_epoch = frame.groupby("epoch")[column].agg(["mean", "min", "max"]) * factor
            colour = STRATEGY_COLOURS.get(strategy, MUTED)
            axis.fill_between(
                by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.18, lw=0
            )
            axis.plot(by_epoch.index, by_epoch["mean"], color=colour, label=strategy, marker="o", ms=3)
        axis.set(xlabel="epoch", title=title, ylabel="" if column == "loss" else "photos, %")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


@_styled
def semivariogram(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram, lags: int = 150) -> Figure:
    """The paper's figure: lag means and fitted curve over distance, linear and logarithmic; below them, pairs
    a lag.

    Args:
        lags: about how many points the linear panel shows; the fit used every lag.
    """
    figure, axes = _figure(2, 2, (10, 5.6), height_ratios=[4, 1], sharex="col")
    coarse = empirical.coarsened(max(1, len(empirical.pairs) // lags))
    for column, (sums, is_log) in enumerate([(coarse, False), (empirical, True)]):
        table, upper, lower = sums.table(), axes[0, column], axes[1, column]
        table = table[table["pairs"] >= 30]
        spread = np.sqrt(table["variance"])
        upper.fill_between(
            table["lag_km"], table["gamma"] - spread, table["gamma"] + spread, color="#cbd5e1", alpha=0.5,
            lw=0,
            label="±1 standard deviation of the pairs",
        )  # fmt: skip
        upper.plot(
            table["lag_km"],
            table["gamma"],
            ".",
            ms=2.6 if is_log else 3.4,
            color=PALETTE[1],
            label="mean of the lag",
        )
        grid = np.geomspace(1e-3 if is_log else 1e-6, np.pi, 800)
        upper.plot(
            grid * EARTH_RADIUS_KM,
            fitted.gamma(grid),
            color=INK,
            label=f"fit: {fitted.family}, R² {fitted.r2:.2f}",
        )
        _annotate_fit(upper, fitted, is_log)
        lower.fill_between(table["lag_km"], table["pairs"], color="#94a3b8", step="mid", lw=0)
        lower.set(
            xlabel="great-circle distance, km",
            ylabel=f"pairs in\n{sums.lag_width_rad * EARTH_RADIUS_KM:.0f} km",
            yscale="log",
        )
        lower.set_ylim(10, None)
        lower.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        if is_log:
            lower.set_xscale("log")
            upper.set_xlim(5.0, np.pi * EARTH_RADIUS_KM)
        lower.xaxis.set_major_formatter(KILOMETRES)
    top = axes[0, 0].secondary_xaxis(
        "top", functions=(lambda km: km / EARTH_RADIUS_KM, lambda rad: rad * EARTH_RADIUS_KM)
    )
    top.set_xlabel("radians")
    axes[0, 0].set_ylabel("semivariance γ (mean cosine distance)")
    axes[0, 0].legend(loc="center right", bbox_to_anchor=(1.0, 0.27))
    return figure


def _annotate_fit(axis: Axes, fitted: FittedSemivariogram, is_log: bool) -> None:
    """Nugget, sill and range, drawn where they are read off."""
    for value, name in ((fitted.nugget, "nugget"), (fitted.sill, "sill")):
        axis.axhline(value, color=MUTED, ls="--", lw=0.9)
        x, align = (0.02, "left") if is_log else (0.98, "right")
        axis.text(
            x, value, f"{name} {value:.3f} ", transform=axis.get_yaxis_transform(), ha=align, va="bottom",
            fontsize=8.5,
        )  # fmt: skip
    axis.axvline(fitted.range_km, color=PALETTE[3], ls=":", lw=1.4)
    label = f"range ρ\n{fitted.range_km:,.0f} km\n{fitted.range_rad:.2f} rad "
    side = {"ha": "right", "xytext": (-4, 0)} if is_log else {"ha": "left", "xytext": (4, 0)}
    axis.annotate(
        label,
        (fitted.range_km, 0.5 * fitted.sill),
        textcoords="offset points",
        color=PALETTE[3],
        fontsize=8.5,
        **side,
    )


@_styled
def pair_cloud(pairs: pd.DataFrame, fitted: FittedSemivariogram) -> Figure:
    """Every sampled pair as distance against dissimilarity, the fitted curve through it, and the three kinds
    of negative."""
    figure, axes = _figure(1, 1, (8.6, 4.6))
    axis = axes[0, 0]
    shown = pairs[pairs["distance_km"] >= 5.0]
    cells = axis.hexbin(
        shown["distance_km"], shown["dissimilarity"], xscale="log", gridsize=(90, 50), bins="log", mincnt=1,
        cmap=sns.light_palette(INK, as_cmap=True), lw=0,
    )  # fmt: skip
    figure.colorbar(cells, ax=axis, label="sampled pairs", pad=0.01)
    grid = np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 600)
    axis.plot(grid, fitted.gamma(grid / EARTH_RADIUS_KM), color=PALETTE[1], lw=2.2, label="γ(h): expected")
    axis.axvline(fitted.range_km, color=PALETTE[3], ls=":", lw=1.4)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
    for x, y, align, kind, text in [
        (
            fitted.range_km * 0.85,
            0.02,
            "right",
            pair_kinds.FALSE_NEGATIVE,
            "look-alikes and near:\nfalse negatives",
        ),
        (20_500.0, 0.02, "right", pair_kinds.HARD_NEGATIVE, "but far:\nhard negatives"),
        (5.6, 0.98, "left", pair_kinds.EASY, "less alike than expected:\neasy negatives"),
    ]:
        side = {"ha": align, "va": "top" if kind == pair_kinds.EASY else "bottom"}
        place = axis.get_xaxis_transform()
        axis.text(
            x,
            y,
            text,
            color=KIND_COLOURS[kind],
            fontsize=8.5,
            fontweight="bold",
            bbox=box,
            transform=place,
            **side,
        )
    axis.xaxis.set_major_formatter(KILOMETRES)
    axis.set(
        xlabel="great-circle distance h, km", ylabel="dissimilarity d (cosine distance)", xlim=(5, 21_000)
    )
    axis.legend(loc="upper center", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


@_styled
def pair_gallery(chosen: pd.DataFrame, manifest: pd.DataFrame, root: Path) -> Figure:
    """Pairs of photos side by side with their distance, dissimilarity and what the curve expected.

    Args:
        chosen: rows of :func:`lib.evaluate.pairs.sample`, as many of each kind as there are columns.
    """
    kinds = list(dict.fromkeys(chosen["kind"]))
    width = int(chosen["kind"].value_counts().max())
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
            cell.supxlabel(
                f"{pair.distance_km:,.0f} km apart\nd = {pair.dissimilarity:.2f}, expected {pair.gamma:.2f}",
                fontsize=8.5,
            )
    return figure


@_styled
def weights_over_training(histories: pd.DataFrame) -> Figure:
    """What each strategy does to its negatives: quantiles of log w by epoch, and the shares emphasized and
    damped."""
    weighted = histories[
        histories.get("log_weight_q50", pd.Series(dtype=float)).reindex(histories.index).notna()
    ]
    names = list(dict.fromkeys(weighted["strategy"]))
    if not names:
        return _note("no weights to show: infonce leaves every negative as it is")
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(rows, columns, (2.9 * columns, 2.9 * rows), sharey=True)
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.ravel(), names, strict=False):
        frame = weighted[weighted["strategy"] == name].groupby("epoch").mean(numeric_only=True)
        colour = STRATEGY_COLOURS.get(name, MUTED)
        for outer, alpha in (("01", 0.15), ("05", 0.25), ("25", 0.4)):
            low, high = frame[f"log_weight_q{outer}"], frame[f"log_weight_q{100 - int(outer):02d}"]
            axis.fill_between(frame.index, low, high, color=colour, alpha=alpha, lw=0)
        axis.plot(frame.index, frame["log_weight_q50"], color=colour, marker="o", ms=3)
        last = frame.iloc[-1]
        axis.set_title(f"{name}\n{last['emphasized']:.0%} up, {last['damped']:.0%} down", fontweight="normal")
        axis.axhline(0.0, color=INK, lw=0.8)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("log weight (thesis: log factor)")
    return figure


@_styled
def error_distribution(predictions: pd.DataFrame) -> Figure:
    """Share of the photos within a distance, by strategy, all seeds pooled; one panel a split."""
    splits = list(dict.fromkeys(predictions["split"]))
    figure, axes = _figure(1, len(splits), (5.0 * len(splits), 3.8), sharey=True)
    for axis, split in zip(axes[0], splits, strict=True):
        for radius, name in RADII_KM.items():
            axis.axvline(radius, color=MUTED, lw=0.7, ls=":")
            axis.text(
                radius, 1.005, f" {name}", rotation=38, fontsize=7.5, color=MUTED, ha="left", va="bottom"
            )
        for name, frame in predictions[predictions["split"] == split].groupby("strategy", sort=False):
            axis.ecdf(
                np.maximum(frame["error_km"], 0.5),
                label=name,
                color=STRATEGY_COLOURS.get(name, MUTED),
                lw=1.1,
            )
        axis.set(xscale="log", xlim=(0.8, 20_100), ylim=(0, 1), xlabel="great-circle error, km")
        axis.xaxis.set_major_formatter(KILOMETRES)
        axis.set_title(f"split {split}\n", pad=22)
    axes[0, 0].set_ylabel("share of the photos within")
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(0.03, 1.0))
    return figure


@_styled
def forest(
    comparison: pd.DataFrame,
    baseline: str = "infonce",
    metrics: Iterable[str] = ("acc_25km", "acc_100km", "acc_200km", "acc_750km", "acc_2500km"),
) -> Figure:
    """Paired differences to ``baseline`` in percentage points with their 95 % intervals; one panel a split,
    one scale."""
    comparison = comparison[comparison["baseline"] == baseline]
    if comparison.empty:
        return _note(f"nothing to compare with {baseline} in this run")
    metrics = list(metrics)
    splits, names = list(dict.fromkeys(comparison["split"])), list(dict.fromkeys(comparison["strategy"]))
    figure, axes = _figure(
        1,
        len(splits),
        (5.0 * len(splits), 0.6 + 0.24 * len(metrics) * (len(names) + 1)),
        sharex=True,
        sharey=True,
    )
    step = 1.0 / (len(names) + 1)
    for axis, split in zip(axes[0], splits, strict=True):
        axis.axvline(0.0, color=INK, lw=1.0)
        for order, name in enumerate(names):
            rows = (
                comparison[(comparison["split"] == split) & (comparison["strategy"] == name)]
                .set_index("metric")
                .loc[metrics]
            )
            y = -np.arange(len(metrics)) - step * (order - (len(names) - 1) / 2)
            error = 100 * np.stack(
                (rows["difference"] - rows["ci_low"], rows["ci_high"] - rows["difference"])
            )
            axis.errorbar(
                100 * rows["difference"],
                y,
                xerr=error,
                fmt="o",
                ms=4,
                lw=1.4,
                color=STRATEGY_COLOURS.get(name, MUTED),
                label=name,
            )
        axis.set(title=f"split {split}", xlabel=f"difference to {baseline}, percentage points")
        axis.set_yticks(-np.arange(len(metrics)), labels=[METRIC_LABELS[metric] for metric in metrics])
        axis.grid(axis="y", visible=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


@_styled
def by_group(table: pd.DataFrame, name: str, metric: str = "acc_200km") -> Figure:
    """A metric by group (column ``name``) and strategy; one panel a split; small groups are drawn pale."""
    splits, names = (list(dict.fromkeys(table[column])) for column in ("split", "strategy"))
    south = (lambda band: float(band.partition("..")[0])) if name == "latitude_band" else None
    groups = sorted(set(table[name]), key=south, reverse=south is None)
    figure, axes = _figure(1, len(splits), (5.0 * len(splits), 0.9 + 0.42 * len(groups)), sharey=True)
    for axis, split in zip(axes[0], splits, strict=True):
        of_split = table[table["split"] == split]
        for order, strategy in enumerate(names):
            frame = of_split[of_split["strategy"] == strategy]
            y = np.array([groups.index(group) for group in frame[name]]) + 0.16 * (
                (len(names) - 1) / 2 - order
            )
            style = {
                "color": STRATEGY_COLOURS.get(strategy, MUTED),
                "alpha": np.where(frame["n"] >= 30, 0.95, 0.3),
            }
            axis.scatter(100 * frame[metric], y, s=22, label=strategy, **style)
        beside = {"transform": axis.get_yaxis_transform(), "fontsize": 8, "color": MUTED, "va": "center"}
        for group, count in of_split.groupby(name)["n"].first().items():
            axis.text(1.02, groups.index(group), f"{count:,}", **beside)
        axis.text(1.02, len(groups) - 0.3, "photos", **beside)
        axis.set(
            xlabel=f"photos {METRIC_LABELS[metric]}, %",
            title=f"split {split}",
            ylim=(-0.6, len(groups) - 0.4),
        )
        axis.set_yticks(
            range(len(groups)), labels=[_band_label(group) if south else group for group in groups]
        )
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def _band_label(band: str) -> str:
    """``-60..-45`` as 60°S to 45°S."""
    south, north = (float(edge) for edge in band.split(".."))
    return " to ".join(
        f"{abs(edge):.0f}°{'S' if edge < 0 else 'N' if edge > 0 else ''}" for edge in (south, north)
    )


@_styled
def error_map(predictions: pd.DataFrame) -> Figure:
    """Where on Earth the errors are: median error over seeds of one strategy's photos, one map a split."""
    splits = list(dict.fromkeys(predictions["split"]))
    figure, axes = _figure(1, len(splits), (6.2 * len(splits), 3.3), subplot_kw={"projection": "mollweide"})
    norm = mpl.colors.LogNorm(10, 10_000)
    for axis, split in zip(axes[0], splits, strict=True):
        _world(axis)
        columns = ["latitude", "longitude", "error_km"]
        photos = (
            predictions[predictions["split"] == split].groupby("id")[columns].median().sort_values("error_km")
        )
        _scatter(axis, photos, c=np.maximum(photos["error_km"], 10.0), norm=norm, cmap="viridis_r", s=7)
        axis.set_title(f"split {split}")
    figure.colorbar(
        mpl.cm.ScalarMappable(norm, "viridis_r"),
        ax=axes,
        label="error, km",
        shrink=0.7,
        pad=0.02,
        extend="both",
    )
    return figure


@_styled
def factor_effect(factors: Sequence[float] = (1.0, 1.5, 2.0)) -> Figure:
    """Pressure of a negative, e^(s z) or w e^z, over its logit z: a factor s turns round at z = 0, a weight w
    does not."""
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
    """Each photo beside a world map of where the model's probability lies: its first candidate numbered, the
    true place a ring.

    Args:
        table: rows photo, rank, latitude, longitude, true_latitude, true_longitude, error_km.
        mass: rows photo, latitude, longitude, probability.
        root: folder that the photos' names are relative to.
    """
    photos = list(dict.fromkeys(table["photo"]))
    figure = Figure(figsize=(8.6, 2.35 * len(photos)), layout="constrained")
    grid = figure.add_gridspec(len(photos), 2, width_ratios=[1, 2.4])
    for number, photo in enumerate(photos):
        found = table[table["photo"] == photo].sort_values("rank")
        first = found.iloc[0]
        title = (
            f"candidate 1: {first['error_km']:,.0f} km off"
            if np.isfinite(first["error_km"])
            else "true place unknown"
        )
        _show(figure.add_subplot(grid[number, 0]), root, photo, title)
        axis = figure.add_subplot(grid[number, 1], projection="mollweide")
        _world(axis)
        heat = mass[mass["photo"] == photo].sort_values("probability")
        shade = np.sqrt(heat["probability"] / heat["probability"].max())
        _scatter(axis, heat, c=shade, cmap="YlOrRd", s=4.0 + 16.0 * shade, vmin=0.0, vmax=1.0)
        if np.isfinite(first["error_km"]):
            truth = found.iloc[:1].assign(latitude=found["true_latitude"], longitude=found["true_longitude"])
            _scatter(axis, truth, s=230, facecolors="none", edgecolors=PALETTE[0], linewidths=1.8)
        at = np.radians([first["longitude"], first["latitude"]])
        badge = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        axis.text(*at, "1", fontsize=7, fontweight="bold", ha="center", va="center", color=INK, bbox=badge)
    return figure
