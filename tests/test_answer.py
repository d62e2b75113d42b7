"""Statements about the answer in two sentences: it says what the intervals say, and "not shown" where they hold zero."""

from __future__ import annotations

import pandas as pd
import pytest

from lib.show.answer import answer, points, strategies


def comparison(**found: tuple[float, float, float]) -> pd.DataFrame:
    """Differences within 200 km with their intervals, in points, on the split test; the same with 2,500 km, which says nothing here."""
    rows = [
        {"strategy": name, "baseline": "infonce", "metric": metric, "difference": value / 100, "ci_low": low / 100, "ci_high": high / 100,
         "seeds": 3, "n": 2_000, "split": "test"}
        for name, (value, low, high) in found.items() for metric in ("acc_200km", "acc_2500km")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def by_continent(strategy: str, **found: tuple[float, float, float, str]) -> pd.DataFrame:
    """Differences by continent with corrected intervals, in points, and verdicts."""
    rows = [
        {"split": "test", "strategy": strategy, "metric": "acc_200km", "continent": name.replace("_", " "), "n": 100, "difference": value / 100,
         "corrected_low": low / 100, "corrected_high": high / 100, "comparisons": 28, "verdict": verdict}
        for name, (value, low, high, verdict) in found.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


NOTHING = pd.DataFrame()


class TestDoesItHelp:
    def test_a_gain_is_told_with_its_interval_and_a_control_is_called_one(self) -> None:
        given = answer(comparison(semivariogram=(0.6, -0.4, 1.7), semivariance_margin=(3.4, 2.2, 4.5), similarity=(-1.8, -3.1, -0.7)), NOTHING, NOTHING)
        assert given.verdict == "Yes, for 1 of 2 strategies that use the curve; not shown for the paper’s own"
        assert given.lead == "semivariance_margin"
        assert given.helps == (
            "Within 200 km of the true place, semivariance_margin places 3.4 points more of the photos than GeoCLIP as it is (95 % interval +2.2 to +4.5); "
            "for semivariogram (+0.6, −0.4 to +1.7) no difference is shown; similarity, the control without geography, loses 1.8 (−3.1 to −0.7)."
        )

    @pytest.mark.parametrize("low", [0.0, -0.1])
    def test_an_interval_that_holds_zero_is_not_shown_however_large_the_estimate(self, low: float) -> None:
        given = answer(comparison(decayed=(9.0, low, 18.0)), NOTHING, NOTHING)
        assert given.verdict == "Not shown"
        assert "no strategy is shown to place more" in given.helps

    def test_a_gain_of_what_uses_no_curve_is_no_gain_of_the_semivariogram(self) -> None:
        given = answer(comparison(similarity=(2.0, 1.0, 3.0), constant_offset=(2.0, 1.0, 3.0), decayed=(0.1, -1.0, 1.0)), NOTHING, NOTHING)
        assert given.verdict == "Not shown"

    def test_where_all_lose_the_answer_is_no(self) -> None:
        assert answer(comparison(decayed=(-2.0, -3.0, -1.0)), NOTHING, NOTHING).verdict == "No"

    def test_of_many_strategies_three_are_named_and_the_rest_counted(self) -> None:
        many = {f"s{k}": (5.0 - 0.1 * k, 1.0, 9.0) for k in range(6)} | {f"u{k}": (0.1, -1.0, 1.0) for k in range(5)}
        said = answer(comparison(**many), NOTHING, NOTHING).helps
        assert "s0" in said and "s2" in said and "s3" not in said and "3 more gain too" in said
        assert "for 5 others no difference is shown" in said

    def test_without_a_comparison_there_is_no_sentence(self) -> None:
        given = answer(NOTHING, NOTHING, NOTHING)
        assert (given.verdict, given.helps, given.where) == ("Nothing to compare", "", "")

    def test_the_largest_gain_that_is_shown_leads_even_behind_a_larger_estimate(self) -> None:
        rows = strategies(comparison(wide=(8.0, -1.0, 17.0), sure=(2.0, 1.0, 3.0)))
        assert [row.label for row in rows] == ["sure", "wide"]


class TestWhere:
    def test_continents_are_sorted_into_shown_lost_unshown_and_untested(self) -> None:
        found = by_continent("decayed", Africa=(4.0, 1.0, 7.0, "gains"), Asia=(1.0, -1.0, 3.0, "not shown"), Europe=(-4.0, -7.0, -1.0, "loses"),
                             Oceania=(3.0, float("nan"), float("nan"), "too few photos"))  # fmt: skip
        said = answer(comparison(decayed=(2.0, 1.0, 3.0)), found, NOTHING).where
        assert said == (
            "By continent, decayed’s gain is shown in Africa (+4.0, +1.0 to +7.0), turns into a loss in Europe (−4.0, −7.0 to −1.0), "
            "is not shown in Asia taken alone and is not tested in Oceania (fewer than 20 photos)."
        )

    def test_cells_are_counted_and_places_held_out_have_their_own_figure(self) -> None:
        cells = pd.DataFrame({"side_km": 2_000.0, "split": "test", "strategy": "decayed", "metric": "acc_200km", "verdict": ["gains", "not shown", "loses", "too few photos"]})
        both = pd.concat([comparison(decayed=(2.0, 1.0, 3.0)), comparison(decayed=(0.5, -1.0, 2.0)).assign(split="test_blocked")])
        said = answer(both, by_continent("decayed", Asia=(1.0, -1.0, 3.0, "not shown")), cells).where
        assert "; by cell it is shown in 1 of 3 of 2,000 km (a loss in 1); " in said
        assert said.endswith("on cells held out whole it is not shown (+0.5, −1.0 to +2.0).")


    def test_cells_of_which_none_shows_anything_are_counted_as_tested(self) -> None:
        cells = pd.DataFrame({"side_km": [2_000.0, 2_000.0, 4_000.0], "split": "test", "strategy": "decayed", "metric": "acc_200km", "verdict": "not shown"})
        said = answer(comparison(decayed=(2.0, 1.0, 3.0)), by_continent("decayed", Asia=(1.0, -1.0, 3.0, "not shown")), cells).where
        assert said.endswith("; in no single cell is it shown (2 of 2,000 km and 1 of 4,000 km tested).")

    def test_where_no_gain_is_shown_the_sentence_speaks_of_a_difference(self) -> None:
        found = by_continent("decayed", Africa=(4.0, 1.0, 7.0, "gains"), Asia=(1.0, -1.0, 3.0, "not shown"))
        said = answer(comparison(decayed=(0.5, -1.0, 2.0)), found, NOTHING).where
        assert said == "By continent, decayed’s difference is a gain in Africa (+4.0, +1.0 to +7.0) and is not shown in Asia taken alone."

    def test_with_few_photos_everywhere_nothing_is_said_of_any_continent(self) -> None:
        found = by_continent("decayed", Asia=(1.0, float("nan"), float("nan"), "too few photos"))
        given = answer(comparison(decayed=(0.5, -1.0, 2.0)), found, NOTHING)
        assert given.where == "No continent has the 20 photos that a test needs." and given.comparisons == 0


def test_points_have_a_true_minus_and_nought_has_no_sign() -> None:
    assert [points(value) for value in (3.44, -0.5, -0.04, 0.0)] == ["+3.4", "−0.5", "0.0", "0.0"]
