"""Statements about pairs: which are false and which are hard negatives, and that the sample reaches from near
to far."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, fitted, world

from lib.data import features
from lib.evaluate import pairs
from lib.evaluate.pairs import EASY, FALSE_NEGATIVE, HARD_NEGATIVE
from lib.method.geodesy import distance_km

R = 6371.0088
CURVE = fitted()
PLACE = ["latitude", "longitude"]


def gamma(distance_km: np.ndarray) -> np.ndarray:
    return 0.1 + 0.85 * (1.0 - np.exp(-((distance_km / R / 0.3) ** 0.8)))


def measured(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in km, by the law of cosines, and dissimilarity of these rows of the small world."""
    manifest, stored = world()
    centred = stored.astype(np.float64) - stored[(manifest["split"] == "train").to_numpy()].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    radians = np.deg2rad(manifest[PLACE].to_numpy())
    (la, lo), (lb, lp) = radians[first].T, radians[second].T
    cosine = np.sin(la) * np.sin(lb) + np.cos(la) * np.cos(lb) * np.cos(lo - lp)
    return R * np.arccos(cosine), 1.0 - (unit[first] * unit[second]).sum(1)


class TestKinds:
    @pytest.mark.parametrize(
        ("distance_km", "above", "kind"),
        [
            (0.9 * R - 1.0, -0.05, FALSE_NEGATIVE),
            (0.9 * R + 1.0, -0.05, HARD_NEGATIVE),
            (10.0, 0.05, EASY),
            (18_000.0, 0.05, EASY),
        ],
    )
    def test_a_look_alike_is_false_up_to_the_range_and_hard_beyond(
        self, distance_km: float, above: float, kind: str
    ) -> None:
        frame = pd.DataFrame({"distance_km": [distance_km], "dissimilarity": [gamma(distance_km) + above]})
        found = pairs.classify(frame, CURVE).iloc[0]
        assert found["kind"] == kind
        assert found["gamma"] == pytest.approx(gamma(distance_km), abs=1e-6)
        assert found["residual"] == pytest.approx(-above, abs=1e-6)


class TestSample:
    @pytest.fixture
    def sample(self, make_run: Runs) -> pd.DataFrame:
        return pairs.sample(make_run("backbone.centred=true"), CURVE, count=3_000, seed=1)

    def test_each_pair_is_what_its_two_training_photos_are(self, sample: pd.DataFrame) -> None:
        train, numbers = (world()[0]["split"] == "train").to_numpy(), sample[["first", "second"]].to_numpy()
        assert train[numbers].all() and (sample["first"] != sample["second"]).all()
        distance, dissimilarity = measured(*numbers.T)
        assert np.allclose(sample["distance_km"], distance, atol=1e-3)
        assert np.allclose(sample["dissimilarity"], dissimilarity, atol=1e-5)
        assert np.allclose(sample["residual"], gamma(distance) - dissimilarity, atol=1e-4)

    def test_near_pairs_are_more_frequent_than_chance_makes_them(self, sample: pd.DataFrame) -> None:
        assert 1_500 < len(sample) <= 3_300
        places = world()[0].query("split == 'train'")[PLACE].to_numpy()
        every = distance_km(places[:, None], places[None])[~np.eye(96, dtype=bool)]
        assert (sample["distance_km"] < 2_000.0).mean() > 1.3 * (every < 2_000.0).mean()


class TestExamples:
    def test_an_example_is_of_the_largest_residuals_and_uses_no_photo_again(self) -> None:
        residuals = np.linspace(0.0, 1.0, 100)
        frame = pd.DataFrame({"first": range(100), "second": range(200, 300), "residual": residuals})
        used: list[int] = [99]  # the first photo of the very largest
        angle = torch.linspace(0.0, 3.0, 300)  # the higher a row, the less it is like the rows before
        unit = torch.stack((angle.cos(), angle.sin()), 1)
        shuffled = frame.sample(frac=1.0, random_state=0)
        (chosen,) = pairs.example_pair(shuffled, used, lambda rows: unit[rows.tolist()]).itertuples()
        assert chosen.residual >= frame["residual"].iloc[94] and chosen.first == 94  # the least like row 99
        assert used == [99, chosen.first, chosen.second]

    def test_they_reach_from_near_to_far_and_show_no_photo_twice(self, make_run: Runs) -> None:
        run = make_run(sizes={"train": 400, "validation": 1, "test": 1})
        unit = features.read(run, features.photos(run)).unit
        found = pairs.examples(pairs.sample(run, CURVE, count=40_000), CURVE, unit, count=3)
        assert set(found["kind"]) == {FALSE_NEGATIVE, HARD_NEGATIVE}
        assert not pd.concat([found["first"], found["second"]]).duplicated().any()
        by_kind = found.groupby("kind")["distance_km"]
        near, hard = by_kind.get_group(FALSE_NEGATIVE), by_kind.get_group(HARD_NEGATIVE)
        assert len(hard) == 3 and hard.is_monotonic_increasing and (found["residual"] > 0.0).all()
        assert near.max() <= 500.0 < CURVE.range_km


def test_a_typical_pair_is_the_median_of_those_about_so_far_apart() -> None:
    km = [49.0, 50.0, 51.0, 70.0, 2_100.0]
    cloud = pd.DataFrame({"distance_km": km, "dissimilarity": [0.9, 0.1, 0.5, 0.0, 0.7], "gamma": 0.6})
    cloud = cloud.assign(first=range(5), second=range(5, 10))
    found = pairs.typical(cloud, pd.DataFrame({"id": [f"p{k}" for k in range(10)]}))
    assert found[["first", "second"]].to_numpy().tolist() == [["p2", "p7"], ["p4", "p9"]]
    assert found["dissimilarity"].tolist() == [0.5, 0.7]
    assert pairs.typical(cloud[:0], pd.DataFrame({"id": []})).empty


def test_shares_are_those_of_every_pair_that_a_batch_may_draw(make_run: Runs) -> None:
    train = np.flatnonzero(world()[0]["split"] == "train")
    first, second = np.triu_indices(len(train), 1)
    distance, dissimilarity = measured(train[first], train[second])
    alike, near = gamma(distance) > dissimilarity, distance <= 0.9 * R
    expected = {FALSE_NEGATIVE: alike & near, HARD_NEGATIVE: alike & ~near, EASY: ~alike}
    found = pairs.shares(make_run("backbone.centred=true"), CURVE)
    for kind, of_kind in expected.items():
        assert found.loc[kind, "share"] == pytest.approx(of_kind.mean(), abs=1e-3)
        assert found.loc[kind, "of a photo's 31 negatives"] == pytest.approx(31 * of_kind.mean(), abs=0.1)
