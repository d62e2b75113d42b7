"""Figures of the semivariogram's own questions: families and bands."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.method.geodesy import EARTH_RADIUS_KM, rad_to_km
from lib.method.semivariogram import SHAPE_PARAMETERS, FittedSemivariogram
from lib.show.figures import INK, KILOMETRES, PALETTE, _figure, _styled
from study.variography import LEAST_PAIRS, Bands

FAMILY_STYLES = {
    "Stable": (PALETTE[0], "-"), "Matern": (PALETTE[2], "--"), "Exponential": (PALETTE[1], "-."),
    "Rational": (PALETTE[4], (0, (5, 1, 1, 1, 1, 1))), "Spherical": (PALETTE[5], ":"),
    "Gaussian": (PALETTE[9], (0, (1, 1))),
}  # fmt: skip
"""Colour and dash of each family: told apart without colour too."""
RANGE_LABELS = {
    "range_slope_km": "slope < 0.01 per rad",
    "range_sill95_km": "95 % of the sill",
    "range_band_km": "band meets the sill",
}
RANGE_COLOURS = {"range_slope_km": PALETTE[3], "range_sill95_km": INK, "range_band_km": "#6a3d9a"}
GAMMA = "semivariance γ (mean cosine distance)"
SHORTEST_KM = 8.0


def _distance_axis(axis: Axes, is_log: bool) -> None:
    """Great-circle distance below, in kilometres."""
    axis.set(xlabel="great-circle distance h, km")
    if is_log:
        axis.set_xscale("log")
        axis.set_xlim(SHORTEST_KM, np.pi * EARTH_RADIUS_KM)
    else:
        axis.set_xlim(0, np.pi * EARTH_RADIUS_KM)
    axis.xaxis.set_major_formatter(KILOMETRES)


def _model(row: pd.Series) -> FittedSemivariogram:
    """The curve of a row of :func:`study.variography.candidates_table`."""
    return FittedSemivariogram(
        family=row["family"],
        metric=row["metric"],
        nugget=row["nugget"],
        partial_sill=row["partial_sill"],
        length_scale_rad=row["length_scale_rad"],
        exponent=float(row["exponent"]) if row["family"] in SHAPE_PARAMETERS else None,
        range_rad=row["range_slope_rad"],
        range_km=float(rad_to_km(row["range_slope_rad"])),
        range_rule="slope",
        weights=row["weights"],
        r2=row["r2"],
        backbone="",
        centred=False,
        photos=0,
        pairs=0,
    )


@_styled
def bands(found: Bands, candidates: pd.DataFrame, emphasised: str = "") -> Figure:
    """The empirical curve with its 95 % band, every family through it, and the range by each rule with its
    interval.

    Args:
        found: of :func:`study.variography.bands`.
        candidates: of :func:`study.variography.candidates_table`; drawn are the families' fits of ``found``'s
            metric and weights.
        emphasised: the family in full ink; that of ``found`` where empty.
    """
    figure, axes = _figure(2, 2, (10, 5.9), height_ratios=[4, 1.15], sharex="col")
    emphasised = emphasised or found.fitted.family
    alike = (candidates["metric"] == found.fitted.metric) & (candidates["weights"] == found.fitted.weights)
    models = [_model(row) for _, row in candidates[alike].dropna(subset=["nugget"]).iterrows()]
    used, lag_km = found.empirical.pairs >= LEAST_PAIRS, rad_to_km(found.empirical.lag_rad)
    for column, is_log in enumerate([False, True]):
        axis, below = axes[:, column]
        axis.fill_between(
            lag_km[used],
            found.low[used],
            found.high[used],
            color="#94a3b8",
            alpha=0.55,
            lw=0,
            label="95 % band, resampled places",
        )
        axis.plot(lag_km[used], found.empirical.gamma[used], ".", ms=3, color=INK, label="mean of the lag")
        grid = np.geomspace(1e-3, np.pi, 600) if is_log else np.linspace(1e-6, np.pi, 1_200)
        for model in sorted(models, key=lambda one: one.family == emphasised):
            colour, dash = FAMILY_STYLES[model.family]
            strong = model.family == emphasised
            label = f"{model.family}, R² {model.r2:.2f}"
            axis.plot(
                rad_to_km(grid),
                model.gamma(grid),
                color=colour,
                ls=dash,
                lw=2.4 if strong else 1.2,
                alpha=1.0 if strong else 0.8,
                label=label,
            )
        _ranges(below, found)
        _distance_axis(below, is_log)
    axes[0, 0].set(ylabel=GAMMA, title=f"{found.fitted.metric} distance, weights {found.fitted.weights}")
    for axis in axes[0]:
        axis.set_ylim(0.0, 1.08 * np.nanmax(found.high[used]))
    axes[0, 0].legend(loc="lower right", ncols=2)
    axes[1, 1].tick_params(labelleft=False)
    return figure


def _ranges(axis: Axes, found: Bands) -> None:
    """The range by each rule and its interval, one line each."""
    table = found.table().set_index("parameter")
    for order, name in enumerate(RANGE_LABELS):
        row, colour = table.loc[name], RANGE_COLOURS[name]
        axis.plot(
            [row["ci_low"], row["ci_high"]],
            [order, order],
            color=colour,
            lw=3.5,
            alpha=0.45,
            solid_capstyle="butt",
        )
        axis.plot(row["value"], order, "o", ms=5, color=colour)
        text = f"{row['value']:,.0f} km  ({row['ci_low']:,.0f} to {row['ci_high']:,.0f})"
        axis.annotate(
            text, (1.0, order), xycoords=axis.get_yaxis_transform(), ha="right", va="center", fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        ) if not axis.get_subplotspec().colspan.start else None  # fmt: skip
    axis.set_yticks(range(len(RANGE_LABELS)), labels=list(RANGE_LABELS.values()))
    axis.set_ylim(len(RANGE_LABELS) - 0.4, -0.6)
