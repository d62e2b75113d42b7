"""Figures of a study: many strategies in one forest, gains over two factors, gains along one."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.method import negatives
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.method.semivariogram import FittedSemivariogram
from lib.show.figures import (
    INK,
    KILOMETRES,
    METRIC_LABELS,
    MUTED,
    PALETTE,
    _figure,
    _note,
    _styled,
    colour_of,
)

KIND_LABELS = {
    "family": "semivariogram",
    "peer": "peers",
    "control": "controls",
    "variant": "variants",
    "oracle": "oracles",
}
KIND_COLOURS = {
    "family": PALETTE[2],
    "peer": PALETTE[0],
    "control": PALETTE[1],
    "variant": "#6a3d9a",
    "oracle": INK,
}
MARKERS = ("o", "s", "^", "D", "v", "P")


def kind_of(name: str) -> str:
    """Group of a strategy in a figure: family, peer, control or oracle; variant for a name that is no
    strategy itself."""
    if name.startswith("oracle"):
        return "oracle"
    return negatives.REGISTRY[name].kind if name in negatives.REGISTRY else "variant"


@_styled
def forest_all(
    table: pd.DataFrame,
    metrics: tuple[str, ...] = ("acc_25km", "acc_200km", "acc_2500km"),
    margin: float = 0.003,
) -> Figure:
    """Paired differences of every strategy: thick the 95 % interval, thin the one corrected for the number of
    comparisons.

    Sorted within groups by the difference at the middle radius on the first split; a filled dot where the
    corrected interval leaves zero out. The grey zone holds what is called equivalent.

    Args:
        table: of :func:`lib.evaluate.intervals.corrected`, with one baseline.
        margin: half the width of that zone, as a fraction.
    """
    splits = list(dict.fromkeys(table["split"]))
    chosen = [metric for metric in metrics if metric in set(table["metric"])]
    middle = chosen[len(chosen) // 2]
    gain = table[(table["split"] == splits[0]) & (table["metric"] == middle)].set_index("strategy")[
        "difference"
    ]
    names = [
        name
        for kind in KIND_LABELS
        for name in sorted((n for n in gain.index if kind_of(n) == kind), key=lambda n: -gain[n])
    ]
    size = (2.7 * len(chosen) + 1.6, 0.8 + (0.7 + 0.22 * len(names)) * len(splits))
    figure, axes = _figure(len(splits), len(chosen), size, sharey=True)
    panels = [(split, metric) for split in splits for metric in chosen]
    for axis, (split, metric) in zip(axes.ravel(), panels, strict=True):
        rows = table[(table["split"] == split) & (table["metric"] == metric)].set_index("strategy").loc[names]
        _forest_panel(
            axis,
            100.0 * rows[["difference", "ci_low", "ci_high", "corrected_low", "corrected_high"]],
            rows["verdict"],
        )
        axis.axvspan(-100 * margin, 100 * margin, color="#e2e8f0", lw=0, zorder=0)
        axis.set(
            title=f"{split}, {METRIC_LABELS[metric]}",
            xlabel="percentage points" if split == splits[-1] else "",
        )
    for first in axes[:, 0]:
        first.set_yticks(range(len(names)), labels=names)
        for label, name in zip(first.get_yticklabels(), names, strict=True):
            label.set_color(KIND_COLOURS[kind_of(name)])
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    kinds = [kind for kind in KIND_LABELS if any(kind_of(name) == kind for name in names)]
    handles = [
        mpl.lines.Line2D([], [], color=KIND_COLOURS[kind], lw=3, label=KIND_LABELS[kind]) for kind in kinds
    ]
    filled = {"color": MUTED, "ls": "", "marker": "o", "ms": 5}
    handles += [
        mpl.lines.Line2D([], [], label="gains or loses", **filled),
        mpl.lines.Line2D([], [], label="not shown to differ", mfc="white", **filled),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _forest_panel(axis: Axes, points: pd.DataFrame, verdicts: pd.Series) -> None:
    for order, (name, row) in enumerate(points.iterrows()):
        colour = KIND_COLOURS[kind_of(name)]
        axis.plot([row["corrected_low"], row["corrected_high"]], [order, order], color=colour, lw=0.9)
        axis.plot(
            [row["ci_low"], row["ci_high"]],
            [order, order],
            color=colour,
            lw=3.0,
            alpha=0.55,
            solid_capstyle="butt",
        )
        shown = verdicts[name] in {"gains", "loses"}
        axis.plot(
            row["difference"], order, "o", ms=5, color=colour, mfc=colour if shown else "white", zorder=4
        )
    axis.axvline(0.0, color=INK, lw=0.9)
    axis.grid(axis="y", visible=False)


@_styled
def gain_heatmap(
    table: pd.DataFrame,
    x: str,
    y: str,
    strategies: tuple[str, ...],
    metrics: tuple[str, ...] = ("acc_25km", "acc_200km"),
) -> Figure:
    """Gain over infonce by two factors, one row of panels a strategy, one column a radius; bold where the
    interval excludes zero.

    Args:
        table: of :func:`study.sweeps.sweep`, with columns ``x`` and ``y``.
    """
    if table.empty:
        return _note("nothing was varied: the profile's study has no densities or batch sizes")
    figure, axes = _figure(len(strategies), len(metrics), (4.1 * len(metrics), 0.9 + 2.5 * len(strategies)))
    largest = 100.0 * table.loc[table["metric"].isin(metrics), "difference"].abs().max()
    norm = mpl.colors.TwoSlopeNorm(0.0, -max(largest, 0.1), max(largest, 0.1))
    for row, strategy in enumerate(strategies):
        for axis, metric in zip(axes[row], metrics, strict=True):
            cells = table[(table["strategy"] == strategy) & (table["metric"] == metric)]
            wide = {
                name: cells.pivot(index=y, columns=x, values=name)
                for name in ("difference", "ci_low", "ci_high", "accuracy")
            }
            mesh = axis.pcolormesh(
                100.0 * wide["difference"].to_numpy(), cmap="RdBu", norm=norm, edgecolors="white", lw=1.5
            )
            for (i, j), value in np.ndenumerate(100.0 * wide["difference"].to_numpy()):
                sure = wide["ci_low"].iloc[i, j] > 0 or wide["ci_high"].iloc[i, j] < 0
                base = 100.0 * (wide["accuracy"].iloc[i, j] - wide["difference"].iloc[i, j])
                shade = "white" if abs(value) > 0.62 * largest else INK
                axis.text(
                    j + 0.5,
                    i + 0.56,
                    f"{value:+.1f}",
                    ha="center",
                    va="center",
                    fontweight="bold" if sure else "normal",
                    color=shade,
                )
                axis.text(
                    j + 0.5, i + 0.26, f"from {base:.1f} %", ha="center", va="center", fontsize=7, color=shade
                )
            axis.set_xticks(
                np.arange(len(wide["difference"].columns)) + 0.5,
                labels=[f"{value:,}" for value in wide["difference"].columns],
            )
            axis.set_yticks(
                np.arange(len(wide["difference"].index)) + 0.5,
                labels=[f"{value:,}" for value in wide["difference"].index],
            )
            axis.set(
                xlabel=AXIS_LABELS.get(x, x),
                ylabel=AXIS_LABELS.get(y, y),
                title=f"{strategy}, {METRIC_LABELS[metric]}",
            )
            axis.grid(visible=False)
    figure.colorbar(mesh, ax=axes, label="gain over infonce, percentage points", shrink=0.8)
    return figure


AXIS_LABELS = {
    "photos": "training photos", "batch_size": "batch size", "queue_size": "queue of earlier places",
    "epochs": "epochs",
    "nugget_to_sill": "nugget / sill of the features",
}  # fmt: skip


@_styled
def along(
    table: pd.DataFrame,
    x: str,
    metrics: tuple[str, ...] = ("acc_25km", "acc_200km", "acc_2500km"),
    is_log: bool = False,
) -> Figure:
    """Accuracy (above) and gain over infonce with 95 % intervals (below) along one factor, one column a
    radius.

    Args:
        table: of :func:`study.sweeps.sweep` or :func:`study.sweeps.sweep_worlds`, with a numeric column
            ``x``.
    """
    if table.empty:
        return _note(f"nothing was varied: the profile's study has no {AXIS_LABELS.get(x, x)}")
    figure, axes = _figure(2, len(metrics), (3.3 * len(metrics), 5.0), sharex="col")
    names = list(dict.fromkeys(table["strategy"]))
    for column, metric in enumerate(metrics):
        upper, lower = axes[:, column]
        for name, marker in zip(names, itertools.cycle(MARKERS), strict=False):
            rows = table[(table["strategy"] == name) & (table["metric"] == metric)].sort_values(x)
            colour = colour_of(name)
            upper.plot(rows[x], 100 * rows["accuracy"], marker=marker, ms=4, color=colour, label=name)
            if name != "infonce":
                error = 100 * np.stack(
                    (rows["difference"] - rows["ci_low"], rows["ci_high"] - rows["difference"])
                )
                lower.errorbar(
                    rows[x],
                    100 * rows["difference"],
                    yerr=error,
                    marker=marker,
                    ms=4,
                    color=colour,
                    capsize=2,
                    lw=1.3,
                )
        lower.axhline(0.0, color=INK, lw=0.9)
        lower.set_xlabel(AXIS_LABELS.get(x, x))
        upper.set_title(METRIC_LABELS[metric])
        if is_log:
            values = sorted(table[x].unique())
            lower.set_xscale("log")
            lower.set_xticks(values, labels=[f"{value:,}" for value in values])
            lower.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes[0, 0].set_ylabel("validation photos, %")
    axes[1, 0].set_ylabel("gain over infonce, points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return figure


ORACLE_STYLES = {"oracle": INK, "oracle_false": "#7c8794", "oracle_hard": "#a16207"}


@_styled
def precision_recall(curves: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """With which precision and recall each strategy's weights find false negatives (left) and hard negatives
    (right).

    Args:
        curves, found: of :func:`study.simulation.detection`.
    """
    kinds = list(dict.fromkeys(found["kind"]))
    figure, axes = _figure(1, len(kinds), (5.2 * len(kinds), 4.3), sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows = (
            found[found["kind"] == kind]
            .dropna(subset=["average_precision"])
            .sort_values("average_precision", ascending=False)
        )
        for number, row in enumerate(rows.itertuples()):
            line = curves[(curves["strategy"] == row.strategy) & (curves["kind"] == kind)]
            colour = ORACLE_STYLES.get(row.strategy, colour_of(row.strategy))
            dash = ("-", "--", "-.", ":")[number % 4]
            axis.plot(
                line["recall"],
                line["precision"],
                color=colour,
                ls=dash,
                label=f"{row.strategy}: {row.average_precision:.3f}",
            )
        prevalence = found.loc[found["kind"] == kind, "prevalence"].iloc[0]
        axis.axhline(prevalence, color=MUTED, lw=0.9, ls=(0, (1, 1)), label=f"chance: {prevalence:.4f}")
        axis.set(xlabel="recall", title=f"{kind}s", yscale="log", ylim=(prevalence / 2, 1.3))
        axis.legend(
            title="average precision",
            fontsize=7.5,
            title_fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=2,
        )
    axes[0, 0].set_ylabel("precision")
    return figure


@_styled
def known_curve(table: pd.DataFrame, known: pd.DataFrame, fitted: FittedSemivariogram) -> Figure:
    """The semivariogram that a simulated world has, what was estimated in it, and the fit.

    Args:
        table: of the empirical semivariogram; known: columns lag_km and gamma.
    """
    figure, axes = _figure(1, 1, (6.4, 3.8))
    axis, shown = axes[0, 0], table[table["pairs"] >= 30]
    axis.plot(shown["lag_km"], shown["gamma"], ".", ms=3, color=PALETTE[1], label="estimated")
    axis.plot(known["lag_km"], known["gamma"], color=INK, lw=2.2, label="known")
    axis.plot(
        known["lag_km"],
        fitted.gamma(known["lag_km"].to_numpy() / EARTH_RADIUS_KM),
        color=PALETTE[0],
        ls="--",
        label=f"fit: {fitted.family}",
    )
    axis.set(
        xscale="log",
        xlabel="great-circle distance, km",
        ylabel="semivariance γ (mean cosine distance)",
        ylim=(0, None),
    )
    axis.xaxis.set_major_formatter(KILOMETRES)
    axis.legend(loc="lower right")
    return figure
