"""Statements about pairs: which are false and which are hard negatives, and that the sample reaches from near
to far."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, fitted, world

from lib.data import features
from lib.evaluate.pairs import (
    EASY,
    FALSE_NEGATIVE,
    HARD_NEGATIVE,
    classify,
    example_pair,
    examples,
    sample,
    shares,
    typical,
)
from lib.method.geodesy import distance_km

R = 6371.0088
CURVE = fitted(
    nugget=0.1, partial_sill=0.85, length_scale_rad=0.3, exponent=0.8, range_rad=0.9, range_km=0.9 * R
)


def gamma(distance_km: float) -> float:
    return 0.1 + 0.85 * (1.0 - math.exp(-((distance_km / R / 0.3) ** 0.8)))


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
        found = classify(frame, CURVE).iloc[0]
        assert found["kind"] == kind
        assert found["gamma"] == pytest.approx(gamma(distance_km), abs=1e-6)
        assert found["residual"] == pytest.approx(-above, abs=1e-6)


class TestSample:
    @pytest.fixture
    def pairs(self, make_run: Runs) -> pd.DataFrame:
        return sample(make_run("backbone.centred=true"), CURVE, count=3_000, seed=1)

    def test_each_pair_is_what_its_two_training_photos_are(self, pairs: pd.DataFrame) -> None:
        manifest, features = world()
        train = (manifest["split"] == "train").to_numpy()
        assert train[pairs[["first", "second"]].to_numpy()].all()
        assert (pairs["first"] != pairs["second"]).all()
        centred = features - features[train].mean(0)
        for row in pairs.sample(40, random_state=0).itertuples(index=False):
            u, v = centred[row.first], centred[row.second]
            cosine = float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))
            assert row.dissimilarity == pytest.approx(1.0 - cosine, abs=1e-5)
            la, lo, lb, lp = np.deg2rad(
                manifest.loc[[row.first, row.second], ["latitude", "longitude"]].to_numpy()
            ).ravel()
            h = math.acos(math.sin(la) * math.sin(lb) + math.cos(la) * math.cos(lb) * math.cos(lo - lp))
            assert row.distance_km == pytest.approx(h * R, abs=1e-3)
            assert row.residual == pytest.approx(gamma(h * R) - row.dissimilarity, abs=1e-4)

    def test_near_pairs_are_more_frequent_than_chance_makes_them(self, pairs: pd.DataFrame) -> None:
        assert 1_500 < len(pairs) <= 3_300
        places = world()[0].query("split == 'train'")[["latitude", "longitude"]].to_numpy()
        every = distance_km(places[:, None], places[None])[~np.eye(96, dtype=bool)]
        assert (pairs["distance_km"] < 2_000.0).mean() > 1.3 * (every < 2_000.0).mean()


class TestExamples:
    def test_an_example_is_of_the_largest_residuals_and_uses_no_photo_again(self) -> None:
        frame = pd.DataFrame(
            {"first": range(100), "second": range(200, 300), "residual": np.linspace(0.0, 1.0, 100)}
        )
        used: list[int] = [99]  # the first photo of the very largest
        angle = torch.linspace(0.0, 3.0, 300)  # the higher a row, the less it is like the rows before
        unit = torch.stack((angle.cos(), angle.sin()), 1)
        (chosen,) = example_pair(
            frame.sample(frac=1.0, random_state=0), used, lambda rows: unit[rows.tolist()]
        ).itertuples()
        assert chosen.residual >= frame["residual"].iloc[94] and chosen.first == 94  # the least like row 99
        assert used == [99, chosen.first, chosen.second]

    def test_they_reach_from_near_to_far_and_show_no_photo_twice(self, make_run: Runs) -> None:
        run = make_run(sizes={"train": 400, "validation": 1, "test": 1})
        unit = features.read(run, features.photos(run)).unit
        found = examples(sample(run, CURVE, count=40_000), CURVE, unit, count=3)
        assert set(found["kind"]) == {FALSE_NEGATIVE, HARD_NEGATIVE}
        assert not pd.concat([found["first"], found["second"]]).duplicated().any()
        near, hard = (
            found.loc[found["kind"] == kind, "distance_km"] for kind in (FALSE_NEGATIVE, HARD_NEGATIVE)
        )
        assert len(hard) == 3 and hard.is_monotonic_increasing and (found["residual"] > 0.0).all()
        assert near.max() <= 500.0 < CURVE.range_km


def test_a_typical_pair_is_the_median_of_those_about_so_far_apart() -> None:
    km = [49.0, 50.0, 51.0, 70.0, 2_100.0]
    cloud = pd.DataFrame({"distance_km": km, "dissimilarity": [0.9, 0.1, 0.5, 0.0, 0.7], "gamma": 0.6})
    cloud = cloud.assign(first=range(5), second=range(5, 10))
    found = typical(cloud, pd.DataFrame({"id": [f"p{k}" for k in range(10)]}))
    assert found[["first", "second"]].to_numpy().tolist() == [["p2", "p7"], ["p4", "p9"]]
    assert found["dissimilarity"].tolist() == [0.5, 0.7]
    assert typical(cloud[:0], pd.DataFrame({"id": []})).empty


def test_shares_are_those_of_every_pair_that_a_batch_may_draw(make_run: Runs) -> None:
    manifest, features = world()
    run = make_run("backbone.centred=true")
    train = (manifest["split"] == "train").to_numpy()
    centred = (features[train] - features[train].mean(0)).astype(np.float64)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    radians = np.deg2rad(manifest[train][["latitude", "longitude"]].to_numpy())
    counts = dict.fromkeys((FALSE_NEGATIVE, HARD_NEGATIVE, EASY), 0)
    for i in range(len(unit)):
        for j in range(i + 1, len(unit)):
            (la, lo), (lb, lp) = radians[i], radians[j]
            h = math.acos(math.sin(la) * math.sin(lb) + math.cos(la) * math.cos(lb) * math.cos(lo - lp))
            alike = gamma(h * R) > 1.0 - unit[i] @ unit[j]
            counts[EASY if not alike else FALSE_NEGATIVE if h <= 0.9 else HARD_NEGATIVE] += 1
    found = shares(run, CURVE)
    total = sum(counts.values())
    for kind, count in counts.items():
        assert found.loc[kind, "share"] == pytest.approx(count / total, abs=1e-3)
        assert found.loc[kind, "of a photo's 31 negatives"] == pytest.approx(31 * count / total, abs=0.1)
