"""Statements about intervals: they hold as often as they promise, corrections by their definition, verdicts
that follow from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import lognormal, table
from scipy import stats

from lib.evaluate import intervals
from lib.evaluate.intervals import compare, corrected, levels, means_of, median_of
from lib.method.errors import BundleError
from lib.train.metrics import COLUMNS, COMPARED, summarise


def effects(draw: np.random.Generator, seeds: int, photos: int, *sizes: float) -> np.ndarray:
    """Values [S, N] with parts of these ``sizes`` of the seed, of the photo and of both."""
    shapes = ((seeds, 1), (1, photos), (seeds, photos))
    return sum(size * draw.standard_normal(shape) for size, shape in zip(sizes, shapes, strict=True))


def predictions(
    shares: dict[str, float], seeds: int = 3, photos: int = 400, seed: int = 0, split: str = "test"
) -> pd.DataFrame:
    """Photos within 100 km with the given chance, else 5,000 km off; strategies share what makes a photo
    hard."""
    generator = np.random.default_rng(seed)
    hardness, frames = generator.random(photos), []
    for name, share in shares.items():
        hit = [0.7 * hardness + 0.3 * generator.random(photos) < share for _ in range(seeds)]
        frames.append(table(np.where(hit, 90.0, 5_000.0), name, split))
    return pd.concat(frames, ignore_index=True)


class TestMeans:
    @pytest.mark.parametrize("parts", [(0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.3, 0.5, 1.0), (0.0, 0.0, 1.0)])
    @pytest.mark.parametrize("seeds", [3, 5, 10])
    def test_the_interval_holds_the_truth_at_least_93_times_of_100(
        self, parts: tuple[float, float, float], seeds: int
    ) -> None:
        generator, held = np.random.default_rng(1), 0
        for _ in range(800):
            (one,) = means_of([effects(generator, seeds, 120, *parts)])
            held += one.low <= 0.0 <= one.high
        # wider where photos and seeds do not differ
        assert 0.93 <= held / 800 <= (0.985 if parts[1] else 1.0)

    def test_one_seed_is_a_t_test_over_photos(self) -> None:
        values = effects(np.random.default_rng(0), 1, 50, 0.0, 1.0, 0.0) + 0.2
        expected = stats.ttest_1samp(values[0], 0.0)
        (found,) = means_of([values])
        told = (found.value / found.error, found.degrees_of_freedom)
        assert told == pytest.approx((expected.statistic, expected.df))

    def test_no_spread_has_no_error_and_few_photos_have_no_interval(self) -> None:
        assert means_of([np.full((3, 20), 0.25)])[0][:4] == (0.25, 0.25, 0.25, 0.0)
        few, many = means_of([np.ones((3, 4)), np.ones((3, 5))], least=5)
        assert few.value == 1.0 and np.isnan(few.error) and many.error == 0.0

    def test_groups_share_what_seeds_differ_by(self) -> None:
        generator = np.random.default_rng(2)
        calm = [generator.normal(size=(3, 50)) for _ in range(10)]
        torn = means_of([group + np.array([[-3.0], [0.0], [3.0]]) for group in calm])
        assert min(one.error for one in torn) > 3.0 * max(one.error for one in means_of(calm))
        assert all(one.degrees_of_freedom == pytest.approx(10 * (3 - 1), rel=0.15) for one in torn)


class TestMedian:
    def test_the_interval_holds_the_true_median_about_19_times_of_20(self) -> None:
        held = 0
        for seed in range(120):
            _, low, high, *_ = median_of(lognormal(seed, (1, 80)), resamples=200, seed=seed)
            held += low <= 300.0 <= high
        assert 0.88 <= held / 120 <= 1.0

    def test_it_is_seeded_and_seeds_that_disagree_widen_it(self) -> None:
        base = lognormal(0, (3, 60))
        assert median_of(base, base - 10.0, 50)[:3] == median_of(base, base - 10.0, 50)[:3]
        assert median_of(base, None, 50) != median_of(base, None, 50, seed=1)
        assert median_of(base - 10.0, base, 50)[:3] == pytest.approx((-10.0,) * 3)
        value, low, high, *_ = median_of(base - np.array([[-80.0], [0.0], [110.0]]), base, 200)
        assert value == pytest.approx(-10.0) and high - low > 80.0

    @pytest.mark.parametrize(("photos", "size"), [(3, 1), (40, 1), (601, 1), (60, 4)])
    def test_it_is_the_interval_of_drawing_each_unit_plainly(self, photos: int, size: int) -> None:
        """4,000 resamples against 4,000 drawn and sorted one by one: photos, or clusters of four."""
        errors, draw, units = np.round(lognormal(photos, (2, photos)), -1), np.random.default_rng(1), []
        members = np.arange(photos).reshape(-1, size)
        for _ in range(4_000):
            chosen = members[draw.integers(len(members), size=len(members))].ravel()
            units.append(np.median(errors[:, chosen], 1)[draw.integers(2, size=2)].mean())
        found = median_of(errors, resamples=4_000, cluster=np.arange(photos) // size if size > 1 else None)
        spread = np.std(units)
        assert (found.low, found.high) == pytest.approx(np.quantile(units, [0.025, 0.975]), abs=0.2 * spread)


class TestCompare:
    def test_the_difference_is_that_of_the_means_over_seeds_and_lies_in_its_interval(self) -> None:
        ours, theirs = lognormal(1, (3, 50), 250.0), lognormal(0, (3, 50))
        both = pd.concat([table(theirs, "infonce"), table(ours, "residual")])
        found = compare(both, resamples=50).set_index("metric")
        assert found.index.tolist() == COLUMNS
        means = [pd.DataFrame(map(summarise, errors)).mean() for errors in (ours, theirs)]
        for metric, row in found.iterrows():
            assert row["difference"] == pytest.approx(means[0][metric] - means[1][metric])
            assert row["ci_low"] <= row["difference"] <= row["ci_high"]
        named = found[["split", "strategy", "baseline", "seeds", "n"]]
        assert (named == ["test", "residual", "infonce", 3, 50]).all(axis=None)

    def test_photos_are_paired_whatever_the_order_of_rows(self) -> None:
        hard = lognormal(0, (2, 60))
        shuffled = table(hard - 0.5, "better").sample(frac=1.0, random_state=0)
        (found,) = compare(pd.concat([table(hard, "infonce"), shuffled]), metrics=["mean_km"]).itertuples()
        assert (found.difference, found.ci_low, found.ci_high) == pytest.approx((-0.5,) * 3)

    def test_the_p_value_and_the_interval_say_the_same(self) -> None:
        for seed in range(12):
            frame = predictions({"infonce": 0.5, "decayed": 0.53}, seed=seed)
            for row in compare(frame, metrics=COMPARED).itertuples():
                assert (row.p_value < 0.05) == (row.ci_low > 0 or row.ci_high < 0)

    def test_other_photos_or_seeds_or_no_baseline_are_refused(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.5})
        for column, one in (("id", "p0002"), ("seed", 2)):
            some = frame[(frame["strategy"] == "infonce") | (frame[column] != one)]
            with pytest.raises(BundleError, match="decayed was not evaluated on all photos and seeds"):
                compare(some)
        with pytest.raises(BundleError, match="hcl is not among"):
            compare(frame, "hcl")

    @pytest.mark.parametrize("name", intervals.UNTRAINED)
    def test_what_is_not_trained_is_one_result_and_stands_against_every_seed(self, name: str) -> None:
        ours, one = table(lognormal(0, (3, 80)), "infonce"), lognormal(1, (1, 80))
        once = compare(pd.concat([ours, table(one, name)]), resamples=50)
        thrice = compare(pd.concat([ours, table(one.repeat(3, 0), "other")]), resamples=50)
        pd.testing.assert_frame_equal(once.drop(columns="strategy"), thrice.drop(columns="strategy"))
        assert intervals.aligned(table(one, name)).shape == (80, 5)


class TestClusters:
    """Photos of one cell err together, so a held-out split has as many independent values as it has cells."""

    SIZES = np.random.default_rng(5).integers(3, 60, 20)

    def held_out(self, sizes: np.ndarray = SIZES, group: int = 0) -> pd.DataFrame:
        """infonce, and a strategy whose gain differs by cell; four seeds, ``sizes`` photos a cell."""
        drawn, photos = np.random.default_rng(group), sizes.sum()
        lift = np.repeat(drawn.normal(0.0, 1.0, len(sizes)), sizes)
        frames = [
            table(100.0 * np.exp(drawn.normal(0.0, 1.0, (4, photos)) + (name == "other") * lift), name)
            for name in ("infonce", "other")
        ]
        cells = np.tile(np.repeat(np.arange(len(sizes)), sizes), 8)
        both = pd.concat(frames, ignore_index=True).assign(split="test_blocked", cell=cells)
        return both.assign(id=f"{group}-" + both["id"], cell=both["cell"] + 1_000 * group)

    @pytest.mark.parametrize("seeds", [1, 3])
    def test_the_interval_holds_the_truth_over_cells_of_unequal_sizes_and_is_no_wider_than_it_must_be(
        self, seeds: int
    ) -> None:
        """600 worlds of 40 cells with 1 to 100 photos; the mean is far from zero, as accuracies are."""
        draw, found = np.random.default_rng(3), []
        for _ in range(600):
            sizes = np.ceil(np.exp(draw.normal(2.0, 0.8, 40))).astype(int)
            cell = np.repeat(np.arange(40), sizes)
            photo = 3.0 + draw.normal(size=40)[cell] + draw.normal(size=len(cell))
            values = photo + 0.3 * draw.normal(size=(seeds, len(cell)))
            found += means_of([intervals.by_cluster(values, cell)])
        mean, low, high, error, _ = np.array(found).T
        assert 0.92 <= ((low <= 3.0) & (high >= 3.0)).mean() <= 0.98
        assert error.mean() == pytest.approx(mean.std(), rel=0.1)

    def test_the_difference_is_that_over_photos_and_the_interval_that_over_cells(self) -> None:
        held_out = self.held_out(np.full(20, 25))
        (plain,) = compare(held_out.assign(split="test"), metrics=["acc_200km"]).itertuples()
        mean, median = compare(held_out, metrics=["acc_200km", "median_km"]).itertuples()
        assert mean.difference == pytest.approx(plain.difference)
        hits = (held_out["error_km"] <= 200).groupby([held_out[key] for key in ("strategy", "seed", "cell")])
        share = hits.mean()
        (expected,) = means_of([(share["other"] - share["infonce"]).unstack().to_numpy()])
        assert (mean.ci_low, mean.ci_high) == pytest.approx((expected.low, expected.high))
        assert mean.error > 1.5 * plain.error and (mean.cells, plain.cells) == (20, 0)
        (of_photos,) = compare(held_out.assign(split="test"), metrics=["median_km"]).itertuples()
        assert median.ci_high - median.ci_low > 1.5 * (of_photos.ci_high - of_photos.ci_low)
        level = levels(held_out).query("strategy == 'other' and metric == 'acc_200km'")
        (alone,) = means_of([share["other"].unstack().to_numpy()])
        assert level["ci_low"].item() == pytest.approx(alone.low)

    def test_within_groups_the_interval_is_over_the_cells_of_the_group_of_which_it_needs_five(self) -> None:
        """As if each continent were a split of its own, but for the variance between seeds: they share it."""
        parts = [self.held_out(), self.held_out(np.full(5, 40), 1), self.held_out(np.full(4, 40), 2)]
        both = pd.concat(parts, ignore_index=True)
        groups = both.drop_duplicates("id").set_index("id")["cell"] // 1_000
        found = corrected(compare(both, metrics=["acc_200km"], groups=groups))
        assert found["cells"].tolist() == [20, 5, 4] and found["comparisons"].eq(2).all()
        for row, part in zip(found.itertuples(), parts, strict=True):
            (alone,) = compare(part, metrics=["acc_200km"]).itertuples()
            assert (row.difference, row.n) == (pytest.approx(alone.difference), alone.n)
            assert np.isnan(row.error) if row.cells == 4 else row.error == pytest.approx(alone.error, rel=0.2)
        assert (found["verdict"] == "too few cells").tolist() == [False, False, True]


class TestCorrected:
    def test_holm_steps_down(self) -> None:
        expected = pytest.approx([0.04, 0.03, np.nan, 0.04], nan_ok=True)
        assert intervals.holm(np.array([0.03, 0.01, np.nan, 0.02])) == expected

    def test_no_family_is_wrong_in_more_than_one_run_of_twenty(self) -> None:
        """Ten strategies like the baseline: at least one verdict in at most about 5 % of the worlds."""
        shares, wrong = dict.fromkeys(("infonce", *"abcdefghij"), 0.5), 0
        for seed in range(60):
            compared = compare(predictions(shares, photos=150, seed=seed), metrics=["acc_100km"])
            wrong += corrected(compared)["verdict"].isin(["gains", "loses"]).any()
        assert wrong <= 8

    def test_verdicts(self) -> None:
        def verdict(whole: pd.DataFrame, strategy: str) -> str:
            rows = whole.set_index(["split", "strategy", "metric"])
            return rows["verdict"].loc[("test", strategy, "acc_100km")]

        shares = {"infonce": 0.5, "a": 0.5, "b": 0.55, "c": 0.62}
        whole = corrected(compare(predictions(shares, seeds=4, photos=800), metrics=COMPARED))
        assert (verdict(whole, "c"), verdict(whole, "a")) == ("gains", "not shown")
        turned = corrected(compare(predictions({"infonce": 0.6, "c": 0.5}, photos=800), metrics=COMPARED))
        assert verdict(turned, "c") == "loses"


class TestLevels:
    def test_values_are_the_means_over_seeds_and_lie_in_their_intervals(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.6})
        frame["error_km"] += np.random.default_rng(0).random(len(frame))
        table = levels(frame, resamples=50)
        assert len(table) == 2 * (len(COMPARED) + 1)
        for (name, metric), row in table.set_index(["strategy", "metric"]).iterrows():
            by_seed = frame[frame["strategy"] == name].groupby("seed")["error_km"]
            values = [summarise(errors.to_numpy())[metric] for _, errors in by_seed]
            told = (row["value"], row["sd_of_seeds"])
            assert told == pytest.approx((np.mean(values), np.std(values, ddof=1)))
            assert row["ci_low"] <= row["value"] <= row["ci_high"]

    def test_an_interval_of_an_accuracy_ends_at_nought_and_one(self) -> None:
        hits = np.random.default_rng(0).random((2, 8)) < np.array([[0.1], [0.9]])
        found = levels(table(np.where(hits, 10.0, 5_000.0), "infonce"), resamples=50)
        shares = found[found["metric"].str.startswith("acc_")]
        assert shares["ci_low"].min() == 0.0 and shares["ci_high"].max() == 1.0
        assert found.loc[found["metric"] == "median_km", "ci_high"].item() > 1.0

    def test_what_is_read_is_a_difference_and_its_interval(self) -> None:
        frame = predictions({"infonce": 0.5, "decayed": 0.6})
        shown = intervals.differences_for_reading(compare(frame, metrics=COMPARED))
        text = shown.loc[("test", "infonce", "decayed"), "acc_100km"]
        assert text.startswith("+") and text.endswith("]") and text.count(", +") == 1
        assert [intervals.points(value) for value in (0.05, -0.25, -0.04)] == ["+0.1", "\u22120.3", "0.0"]
