"""Statements about the kept predictions of the second study: every table of them follows again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lib.evaluate import intervals
from lib.settings import load
from study import kept, second

POINTS = {
    ("blue_marble", "test", "acc_25km"): (0.4, 0.1, 0.7),
    ("blue_marble", "test", "acc_200km"): (1.4, 1.0, 1.8),
    ("blue_marble", "test", "acc_2500km"): (1.9, 1.5, 2.2),
    ("blue_marble", "test_blocked", "acc_2500km"): (1.8, 0.5, 3.1),
    ("shaded_relief", "test", "acc_25km"): (0.0, -0.3, 0.2),
    ("shaded_relief", "test", "acc_200km"): (0.9, 0.5, 1.3),
    ("shaded_relief", "test", "acc_2500km"): (1.7, 1.4, 2.0),
    ("shaded_relief", "test_blocked", "acc_2500km"): (3.7, 1.6, 5.8),
}
"""The paper's question by another program: points and interval, rounded to 0.1; ends differ by 0.005."""


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The tables of the kept predictions, made anew in another folder."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "figures").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        steps = pd.read_csv(kept.KEPT / "second_factorial_differences.csv")
        steps.to_csv(folder / "second_factorial_differences.csv", index=False)
        patch.setattr(kept, "KEPT", folder)
        assert second.main(["tables"]) == 0
    assert {path.name for path in (folder / "figures").glob("*.png")} == {
        "second_primary.png", "second_steps.png",
    }  # fmt: skip
    names = ("primary", "papers_question", "overlap")
    return {name: pd.read_csv(folder / f"second_{name}.csv") for name in names}


@pytest.mark.parametrize("name", ["primary", "papers_question", "overlap"])
def test_every_number_is_that_of_the_kept_table(again: dict[str, pd.DataFrame], name: str) -> None:
    there = pd.read_csv(kept.KEPT / f"second_{name}.csv")
    pd.testing.assert_frame_equal(again[name], there, rtol=1e-4, atol=1e-6)


def test_what_is_read_has_a_row_a_contrast_in_the_order_of_the_plan(again: dict[str, pd.DataFrame]) -> None:
    shown = kept.contrasts_for_reading(again["primary"])
    assert [pair[1:] for pair in shown.index[:5]] == list(kept.CONTRASTS) and len(shown) == 10
    first = shown.loc[("blue_marble", f"{kept.MARGIN} geoclip", "infonce geoclip")]
    assert first["test", "acc_200km"] == "+2.3 [+1.9, +2.7]"
    assert first["test_blocked", "acc_2500km"] == "+2.9 [+1.5, +4.3]"


def test_the_papers_idea_gains_the_more_the_larger_the_radius(again: dict[str, pd.DataFrame]) -> None:
    found = again["papers_question"].set_index(["world", "split", "metric"])
    for key, expected in POINTS.items():
        row = 100.0 * found.loc[key, ["difference", "ci_low", "ci_high"]].astype(float)
        assert row.to_numpy() == pytest.approx(expected, abs=0.055), key


def test_accuracy_falls_with_the_distance_to_the_nearest_training_place(
    again: dict[str, pd.DataFrame],
) -> None:
    found = again["overlap"].query("world == 'blue_marble'")
    assert 100.0 * found["acc_200km"].to_numpy()[:-1] == pytest.approx([95, 83, 65, 35, 2.4], abs=0.5)
    assert found["photos"].iloc[:-1].sum() == found["photos"].iloc[-1] == 4_000
    for part, share in (("final", 99.4), ("relief", 99.65)):
        away = kept.nearest_training_km(part)
        assert 100.0 * (away <= 256.0).mean() == pytest.approx(share) and 60.0 < away.median() < 63.0


def test_the_contrasts_are_paired_and_holm_counts_all_fifteen() -> None:
    drawn = np.random.default_rng(0)
    ids = {"test": [f"t{n}" for n in range(60)], "test_blocked": [f"b{n}" for n in range(60)]}
    frames = [
        pd.DataFrame({"id": ids[split], "split": split, "strategy": f"{name} {kind}", "seed": seed}
                     | {"error_km": 400.0 * np.exp(drawn.normal(size=60))})
        for name, kind in kept.PRIMARY for split in ids for seed in range(3)
    ]  # fmt: skip
    cells = pd.Series(np.arange(120) // 10, [*ids["test"], *ids["test_blocked"]])
    errors = pd.concat(frames)
    errors["cell"] = errors["id"].map(cells)
    found = kept.comparison("here", errors)
    assert len(found) == 15 and found["p_holm"].max() <= 1.0
    row = found.query("split == 'test_blocked' and metric == 'acc_750km' and baseline == 'infonce geoclip'")
    some = errors[errors["split"] == "test_blocked"]
    hits = (some["error_km"] <= 750.0).groupby([some["strategy"], some["seed"], some["id"].map(cells)]).mean()
    both = hits["semivariance_margin geoclip"] - hits["infonce geoclip"]
    (expected,) = intervals.means_of([both.unstack().to_numpy()])
    assert (row["difference"].item(), row["ci_low"].item()) == pytest.approx((expected.value, expected.low))
    assert found["p_holm"].to_numpy() == pytest.approx(intervals.holm(found["p_value"]))


def test_chosen_settings_are_settings() -> None:
    arms, settings = second.chosen_settings()["arms"], load("second").training
    assert set(arms) == {f"{name} {kind}" for name, kind in second.ARMS}
    assert all(settings.changed(changes).epochs == 32 for changes in arms.values())
