"""Statements about the statistics: intervals that hold, corrections by their definition, verdicts that follow from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.evaluate import evaluation, significance
from lib.evaluate.evaluation import PUBLISHED, compare
from lib.evaluate.significance import SignificanceError, beats_all, corrected, final_table, mean_of, paired


def effects(generator: np.random.Generator, seeds: int, photos: int, of_seed: float, of_photo: float, rest: float) -> np.ndarray:
    return (
        of_seed * generator.standard_normal((seeds, 1))
        + of_photo * generator.standard_normal((1, photos))
        + rest * generator.standard_normal((seeds, photos))
    )


def predictions(shares: dict[str, float], seeds: int = 3, photos: int = 400, seed: int = 0, split: str = "test") -> pd.DataFrame:
    """Photos that are found within 100 km with the given chance, else 5,000 km off; strategies share what makes a photo hard."""
    generator = np.random.default_rng(seed)
    hardness = generator.random(photos)
    rows = []
    for name, share in shares.items():
        for number in range(seeds):
            hit = 0.7 * hardness + 0.3 * generator.random(photos) < share
            rows.append(pd.DataFrame({"id": range(photos), "split": split, "strategy": name, "seed": number, "error_km": np.where(hit, 90.0, 5_000.0)}))
    return pd.concat(rows, ignore_index=True)


class TestMean:
    @pytest.mark.parametrize("parts", [(0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.3, 0.5, 1.0), (0.0, 0.0, 1.0)])
    @pytest.mark.parametrize("seeds", [3, 5])
    def test_the_interval_holds_the_truth_95_times_of_100(self, parts: tuple[float, float, float], seeds: int) -> None:
        generator, held = np.random.default_rng(1), 0
        for _ in range(800):
            mean, error, freedom = mean_of(effects(generator, seeds, 120, *parts))
            held += abs(mean) <= error * stats.t.ppf(0.975, freedom)
        assert 0.93 <= held / 800 <= (0.985 if parts[1] else 1.0)  # wider than it need be where photos and seeds do not differ

    def test_the_standard_error_is_that_of_the_mean_squares(self) -> None:
        values = effects(np.random.default_rng(0), 4, 30, 1.0, 2.0, 1.0)
        grand = values.mean()
        between_seeds = 30 * sum((row.mean() - grand) ** 2 for row in values) / 3
        between_photos = 4 * sum((column.mean() - grand) ** 2 for column in values.T) / 29
        rest = sum(
            (values[s, i] - values[s].mean() - values[:, i].mean() + grand) ** 2 for s in range(4) for i in range(30)
        ) / (3 * 29)
        mean, error, freedom = mean_of(values)
        assert mean == pytest.approx(grand)
        assert error**2 == pytest.approx((between_seeds + between_photos - rest) / 120)
        weights = between_seeds**2 / 3 + between_photos**2 / 29 + rest**2 / 87
        assert freedom == pytest.approx((between_seeds + between_photos - rest) ** 2 / weights)

    def test_one_seed_is_a_t_test_over_photos(self) -> None:
        values = effects(np.random.default_rng(0), 1, 50, 0.0, 1.0, 0.0) + 0.2
        mean, error, freedom = mean_of(values)
        expected = stats.ttest_1samp(values[0], 0.0)
        assert (mean / error, freedom) == pytest.approx((expected.statistic, expected.df))

    def test_no_spread_has_no_error(self) -> None:
        assert mean_of(np.full((3, 20), 0.25))[:2] == (0.25, 0.0)


class TestPaired:
    def test_it_agrees_with_the_bootstrap_where_seeds_hardly_differ(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.56}, seeds=6, photos=1_500)
        ours = paired(frame, "infonce").set_index("metric").loc["acc_100km"]
        theirs = compare(frame, resamples=1_000).set_index("metric").loc["acc_100km"]
        assert ours["difference"] == pytest.approx(theirs["difference"])
        width, other = (one["ci_high"] - one["ci_low"] for one in (ours, theirs))
        assert 0.75 < width / other < 1.2

    def test_the_p_value_and_the_interval_say_the_same(self) -> None:
        for seed in range(12):
            for row in paired(predictions({"infonce": 0.5, "decayed": 0.53}, seed=seed), "infonce").itertuples():
                assert (row.p_value < 0.05) == (row.ci_low > 0 or row.ci_high < 0)

    def test_a_strategy_against_itself_differs_by_nothing(self) -> None:
        one = predictions({"infonce": 0.5})
        frame = pd.concat([one, one.assign(strategy="same")])
        assert (paired(frame, "infonce")[["difference", "ci_low", "ci_high", "error"]] == 0.0).all(axis=None)
        assert (paired(frame, "infonce")["p_value"] == 1.0).all()

    def test_other_photos_or_seeds_are_refused(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.5})
        with pytest.raises(SignificanceError, match="decayed was not evaluated on the same"):
            paired(frame[(frame["strategy"] == "infonce") | (frame["id"] != 7)], "infonce")
        with pytest.raises(SignificanceError, match="hcl is not among"):
            paired(frame, "hcl")


class TestCorrected:
    def table(self) -> pd.DataFrame:
        frames = [
            paired(predictions({"infonce": 0.5, "a": 0.5, "b": 0.55, "c": 0.62}, seeds=4, photos=800, split=split, seed=seed), "infonce")
            for seed, split in enumerate(("test", "test_blocked"))
        ]
        return pd.concat(frames, ignore_index=True)

    def test_intervals_hold_all_at_once_and_holm_steps_down(self) -> None:
        whole = corrected(self.table())
        assert (whole["comparisons"] == 15).all()
        for row in whole.itertuples():
            width = row.error * stats.t.ppf(1.0 - 0.025 / 15, row.freedom) if row.error else 0.0
            assert (row.corrected_low, row.corrected_high) == pytest.approx((max(-1, row.difference - width), min(1, row.difference + width)))
            assert row.p_holm >= row.p_value
        for _, rows in whole.groupby("split"):
            assert rows["p_holm"].min() == pytest.approx(min(1.0, 15 * rows["p_value"].min()))

    def test_no_family_is_wrong_in_more_than_one_run_of_twenty(self) -> None:
        """Twenty strategies like the baseline: at least one verdict in at most about 5 % of the worlds."""
        wrong = 0
        for seed in range(60):
            frame = predictions({name: 0.5 for name in ("infonce", *"abcdefghij")}, seeds=3, photos=150, seed=seed)
            wrong += corrected(paired(frame, "infonce", ["acc_100km"]))["verdict"].isin(["better", "worse"]).any()
        assert wrong <= 8

    def test_verdicts(self) -> None:
        whole = corrected(self.table(), margin=0.2).set_index(["split", "strategy", "metric"])["verdict"]
        assert whole.loc[("test", "c", "acc_100km")] == "better"
        assert whole.loc[("test", "a", "acc_100km")] == "equivalent"
        assert corrected(self.table(), margin=1e-6).set_index(["split", "strategy", "metric"])["verdict"].loc[("test", "a", "acc_100km")] == "undecided"
        turned = corrected(paired(predictions({"infonce": 0.6, "c": 0.5}, photos=800), "infonce"))
        assert (turned.set_index("metric")["verdict"].loc["acc_100km"]) == "worse"

    def test_beating_all_is_beating_each(self) -> None:
        frame = predictions({"infonce": 0.5, "hcl": 0.5, "similarity": 0.52, "decayed": 0.62}, seeds=4, photos=900)
        found = beats_all(frame, "decayed", ["infonce", "hcl", "similarity"], ["acc_100km"])
        assert found["baseline"].tolist() == ["infonce", "hcl", "similarity"] and (found["comparisons"] == 3).all()
        assert (found["corrected_low"] > 0).all()
        alone = paired(frame[frame["strategy"].isin(["decayed", "hcl"])], "hcl", ["acc_100km"])
        assert found["difference"].iloc[1] == pytest.approx(alone["difference"].item())


    def test_several_are_each_compared_with_all_but_themselves(self) -> None:
        frame = predictions({"infonce": 0.5, "hcl": 0.5, "decayed": 0.62})
        found = significance.beats_each(frame, ["decayed", "hcl"], ["infonce", "hcl"], ["acc_100km"])
        assert list(zip(found["strategy"], found["baseline"], strict=True)) == [("decayed", "infonce"), ("decayed", "hcl"), ("hcl", "infonce")]
        assert found["comparisons"].tolist() == [2, 2, 1]
        shown = significance.differences_for_reading(found, by=["strategy", "baseline"])
        assert shown.index.tolist() == [("test", "decayed", "infonce"), ("test", "decayed", "hcl"), ("test", "hcl", "infonce")]


class TestFinal:
    def test_values_are_the_means_over_seeds_and_lie_in_their_intervals(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.6})
        frame["error_km"] += np.random.default_rng(0).random(len(frame))
        table = final_table(frame, resamples=100)
        assert len(table) == 2 * (len(evaluation.COMPARED) + 1)
        for (name, metric), row in table.set_index(["strategy", "metric"]).iterrows():
            per_seed = frame[frame["strategy"] == name].groupby("seed")["error_km"]
            values = per_seed.median() if metric == "median_km" else per_seed.apply(lambda e, m=metric: (e <= float(m[4:-2])).mean())
            assert row["value"] == pytest.approx(values.mean()) and row["sd_of_seeds"] == pytest.approx(values.std())
            assert row["ci_low"] <= row["value"] <= row["ci_high"]

    def test_what_is_read_has_every_strategy_in_order(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.6})
        shown = significance.final_for_reading(final_table(frame, resamples=20))
        assert [name for _, name in shown.index] == ["infonce", "decayed"]
        assert shown.loc[("test", "infonce"), "acc_100km"].startswith(f"{100 * (frame[frame['strategy'] == 'infonce']['error_km'] <= 100).mean():.1f} ±")
        text = significance.differences_for_reading(corrected(paired(frame, "infonce"))).loc[("test", "decayed"), "acc_100km"]
        assert text.startswith("+") and text.endswith("▲")


def test_geoclip_as_published_is_one_model_and_stands_against_every_seed() -> None:
    ours = predictions({"infonce": 0.5, "decayed": 0.6})
    one = predictions({PUBLISHED: 0.3}).query("seed == 0")
    table = pd.concat([ours, one], ignore_index=True)
    assert set(final_table(table)["strategy"]) == {"infonce", "decayed", PUBLISHED}
    difference = paired(table, "infonce").set_index(["strategy", "metric"]).loc[(PUBLISHED, "acc_100km"), "difference"]
    assert difference == pytest.approx(compare(table).set_index(["strategy", "metric"]).loc[(PUBLISHED, "acc_100km"), "difference"])


def test_no_interval_of_an_accuracy_begins_below_nought() -> None:
    """One other photo of 400 for each seed: a symmetric interval would reach below."""
    errors = np.where(np.arange(400) == np.arange(3)[:, None], 1.0, 900.0)
    table = pd.concat([pd.DataFrame({"id": range(400), "split": "test", "strategy": "infonce", "seed": number, "error_km": errors[number]}) for number in range(3)])
    row = final_table(table).set_index("metric").loc["acc_25km"]
    assert row["ci_low"] == 0.0 < row["value"] < row["ci_high"]
