"""Statements about the study's figures: what they draw is what the tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_intervals import predictions

from lib.evaluate.intervals import compare, corrected
from lib.train.metrics import COMPARED
from study import figures as study_figures

SPLITS = ("test", "test_blocked")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    shares = {"infonce": 0.5, "decayed": 0.62, "similarity": 0.5, "hcl": 0.52, "infonce_symmetric": 0.51}
    frames = [predictions(shares, split=split, seed=seed, photos=800) for seed, split in enumerate(SPLITS)]
    return corrected(compare(pd.concat(frames, ignore_index=True), metrics=COMPARED), margin=0.003)


def sweep() -> pd.DataFrame:
    rows = [
        {
            "photos": photos,
            "batch_size": size,
            "strategy": name,
            "metric": metric,
            "accuracy": 0.5 + gain,
            "difference": gain,
            "ci_low": gain - 0.01,
            "ci_high": gain + 0.01,
        }
        for photos in (2_000, 6_000)
        for size in (64, 256, 1_024)
        for name, gain in (("infonce", np.nan), ("decayed", 0.001 * size / 64 + photos / 1e6))
        for metric in ("acc_25km", "acc_200km")
    ]
    return pd.DataFrame(rows)


def words(figure: object) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


class TestForest:
    def test_a_panel_a_split_and_radius_with_groups_apart_and_sorted(self, table: pd.DataFrame) -> None:
        figure = study_figures.forest_all(table)
        assert len(figure.axes) == 6
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == ["decayed", "hcl", "similarity", "infonce_symmetric"]

    def test_intervals_are_those_of_the_table_and_a_filled_dot_is_a_finding(
        self, table: pd.DataFrame
    ) -> None:
        axis = study_figures.forest_all(table).axes[1]
        row = (
            table[(table["split"] == "test") & (table["metric"] == "acc_200km")]
            .set_index("strategy")
            .loc["decayed"]
        )
        thin, thick, dot = axis.lines[:3]
        assert np.allclose(thin.get_xdata(), 100 * row[["corrected_low", "corrected_high"]].to_numpy(float))
        assert np.allclose(thick.get_xdata(), 100 * row[["ci_low", "ci_high"]].to_numpy(float))
        assert row["verdict"] == "gains" and dot.get_markerfacecolor() == dot.get_color()
        assert axis.lines[8].get_markerfacecolor() == "white"


class TestHeatmap:
    def test_each_cell_says_its_gain_and_where_it_starts(self) -> None:
        figure = study_figures.gain_heatmap(sweep(), "photos", "batch_size", ("decayed",))
        texts = {text.get_text(): text for text in figure.axes[1].texts}
        assert "+2.2" in texts and "+0.3" in texts and list(texts).count("from 50.0 %") == 1
        assert texts["+2.2"].get_fontweight() == "bold" and texts["+0.3"].get_fontweight() == "normal"


class TestAlong:
    def test_accuracy_above_and_gain_below(self) -> None:
        table = sweep().query("photos == 2000")
        figure = study_figures.along(table, "batch_size", ("acc_25km", "acc_200km"), is_log=True)
        upper, lower = figure.axes[0], figure.axes[2]
        assert [line.get_label() for line in upper.lines] == ["infonce", "decayed"]
        assert np.allclose(lower.lines[0].get_ydata(), [0.3, 0.6, 1.8])
        assert "nothing was varied" in words(study_figures.along(pd.DataFrame(), "epochs"))
