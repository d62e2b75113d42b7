"""Figures of the second study: its primary contrasts in both worlds, and gains by batch and steps."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.show.style import INK, MUTED, PALETTE, panels, styled

WORLDS = {
    "blue_marble": ("Blue Marble", PALETTE[0], "o"),
    "shaded_relief": ("shaded relief", PALETTE[1], "s"),
}
PANELS = {
    ("test", "acc_200km"): "random photos, 200 km",
    ("test_blocked", "acc_750km"): "held-out cells, 750 km",
    ("test_blocked", "acc_2500km"): "held-out cells, 2,500 km",
}


@styled
def contrasts(table: pd.DataFrame) -> Figure:
    """Paired differences with 95 % intervals, both worlds, one panel an endpoint on equal scales.

    Sorted by the first world's difference in the first panel. Filled where Holm's test leaves a difference.

    Args:
        table: ``second_primary.csv``.
    """
    named = table.assign(contrast=table["strategy"] + " − " + table["baseline"])
    for kind, words in ((" geoclip", ""), (" curve", ",\nthe curve's frequencies")):
        named["contrast"] = named["contrast"].str.replace(kind, words)
    first = named[(named["world"] == next(iter(WORLDS))) & (named["metric"] == "acc_200km")]
    order = first.sort_values("difference", ascending=False)["contrast"].tolist()
    figure, axes = panels(1, len(PANELS), (11.0, 3.2), sharex=True, sharey=True)
    for axis, ((split, metric), title) in zip(axes[0], PANELS.items(), strict=True):
        for shift, (world, (_, colour, marker)) in zip((-0.15, 0.15), WORLDS.items(), strict=True):
            chosen = (named["world"] == world) & (named["split"] == split) & (named["metric"] == metric)
            rows = (
                100.0
                * named[chosen]
                .set_index("contrast")
                .loc[order][["difference", "ci_low", "ci_high", "p_holm"]]
            )
            heights = np.arange(len(order)) + shift
            axis.hlines(heights, rows["ci_low"], rows["ci_high"], color=colour, lw=1.6)
            face = np.where(rows["p_holm"] < 5.0, colour, "white")
            axis.scatter(
                rows["difference"], heights, c=face, edgecolors=colour, marker=marker, s=26, zorder=3
            )
        axis.axvline(0.0, color=INK, lw=0.9)
        axis.set(title=title, xlabel="percentage points")
    axes[0, 0].set_yticks(range(len(order)), labels=order)
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker=marker, lw=1.6, ms=5, label=name)
        for name, colour, marker in WORLDS.values()
    ]
    open_dot = {"color": MUTED, "ls": "", "marker": "o", "ms": 5, "mfc": "white"}
    handles.append(mpl.lines.Line2D([], [], label="not left by Holm's test", **open_dot))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@styled
def by_steps(table: pd.DataFrame) -> Figure:
    """Difference to ``infonce`` within 200 km on validation against steps, a line a batch size.

    Args:
        table: ``second_factorial_differences.csv``.
    """
    chosen = table[(table["split"] == "validation") & (table["metric"] == "acc_200km")]
    shape = chosen["shape"].str.extract(r"batch (\d+) steps (\d+)").astype(int)
    chosen = chosen.assign(batch=shape[0], steps=shape[1])
    names = ("constant_offset", "semivariance_margin")
    figure, axes = panels(1, len(names), (8.0, 3.2), sharey=True, sharex=True)
    for axis, name in zip(axes[0], names, strict=True):
        of_name = chosen[chosen["strategy"] == name]
        for (batch, rows), colour, shift in zip(
            of_name.groupby("batch"), PALETTE, (0.96, 1.0, 1.04), strict=False
        ):
            ends = 100.0 * rows[["difference", "ci_low", "ci_high"]].to_numpy().T
            error = np.stack((ends[0] - ends[1], ends[2] - ends[0]))
            axis.errorbar(
                rows["steps"] * shift, ends[0], error, marker="o", ms=4, color=colour, capsize=2, lw=1.3,
                label=f"batch {batch:,}",
            )  # fmt: skip
        axis.axhline(0.0, color=INK, lw=0.9)
        axis.set(title=name, xlabel="steps of training", xscale="log")
        axis.set_xticks([46, 184, 368], labels=["46", "184", "368"])
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes[0, 0].set_ylabel("difference to infonce, points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
