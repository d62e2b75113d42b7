"""Figures of curves: what they draw is what the tables hold, and where there is nothing they say so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import fitted
from matplotlib.figure import Figure
from test_semivariogram import LAG, unit_rows
from test_variography import wavy

from lib.data.sphere import uniform_on_sphere
from study import curve_figures, variography


def words(figure: Figure) -> str:
    return " ".join(
        text.get_text() for axis in figure.axes for text in (*axis.texts, axis.title, *axis.get_yticklabels())
    )


def candidates() -> pd.DataFrame:
    """Two families fitted, one that could not be."""
    row = {
        "metric": "planar",
        "weights": "none",
        "nugget": 0.1,
        "partial_sill": 0.8,
        "length_scale_rad": 0.3,
        "range_slope_rad": 1.0,
        "r2": 0.9,
    }
    failed = {"family": "Gaussian", "metric": "planar", "weights": "none"}
    return pd.DataFrame(
        [
            row | {"family": "Exponential", "exponent": np.nan},
            row | {"family": "Stable", "exponent": 0.7},
            failed,
        ]
    )


@pytest.fixture(scope="module")
def found() -> variography.Bands:
    """Bands of a small world."""
    places = uniform_on_sphere(250, np.random.default_rng(1))
    sums = variography.place_sums(
        unit_rows(wavy(places, 16, seed=2)),
        places,
        variography.place_groups(places, count=10),
        variography.lag_edges(25, 0.05),
    )
    return variography.bands(sums, resamples=10, family="Exponential")


class TestBands:
    def test_every_fitted_family_is_drawn_and_the_chosen_one_widest(self, found: variography.Bands) -> None:
        figure = curve_figures.bands(found, candidates())
        lines = {line.get_label().split(",")[0]: line.get_linewidth() for line in figure.axes[0].lines}
        assert {"Stable", "Exponential"} <= set(lines)
        assert "Gaussian" not in lines
        assert lines["Exponential"] > lines["Stable"]

    def test_each_range_stands_there_with_its_interval(self, found: variography.Bands) -> None:
        text, table = words(curve_figures.bands(found, candidates())), found.table().set_index("parameter")
        for name, label in curve_figures.RANGE_LABELS.items():
            assert label in text
            assert f"{table.loc[name, 'value']:,.0f} km" in text
            assert f"({table.loc[name, 'ci_low']:,.0f} to {table.loc[name, 'ci_high']:,.0f})" in text

    def test_a_candidate_is_drawn_as_its_own_model(self) -> None:
        row = candidates().iloc[1]
        model = fitted(nugget=0.1, partial_sill=0.8, length_scale_rad=0.3, exponent=0.7)
        assert np.allclose(curve_figures._model(row).gamma(LAG), model.gamma(LAG))
