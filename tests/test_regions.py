"""Statements about differences by continent."""

from __future__ import annotations

import numpy as np
import pandas as pd
from conftest import table
from lib.evaluate.regions import continent_gains

from lib.evaluate.intervals import LEAST_PHOTOS


def predictions(shares: dict[str, np.ndarray]) -> pd.DataFrame:
    """Three seeds; each photo is placed within 10 km with its chance in ``shares``, else 5,000 km off."""
    generator = np.random.default_rng(0)
    frames = [
        table(np.where(generator.random((3, len(share))) < share, 10.0, 5_000.0), name)
        for name, share in shares.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_a_gain_is_found_on_the_continent_where_it_is_and_few_photos_have_no_interval() -> None:
    continent = np.repeat(["Africa", "Asia", "Europe"], [150, 150, LEAST_PHOTOS - 1])
    ids = [f"p{number:04d}" for number in range(len(continent))]
    half = np.full(len(continent), 0.5)
    frame = predictions({"infonce": half, "better": half + 0.3 * (continent == "Asia"), "same": half})
    found = continent_gains(frame, pd.Series(continent, ids))
    assert found["comparisons"].eq(4).all()  # two strategies, two continents with enough photos
    said = found[found["metric"] == "acc_200km"].set_index(["strategy", "continent"])
    assert said["verdict"].loc["better"].tolist() == ["not shown", "gains", "too few photos"]
    assert said["verdict"].loc["same"].tolist() == ["not shown", "not shown", "too few photos"]
    asia = said.loc[("better", "Asia")]
    assert asia["n"] == 150 and said["ci_low"].isna().sum() == 2
    assert asia["corrected_low"] < asia["ci_low"] < asia["difference"] < asia["ci_high"]


def test_a_series_without_a_continent_leaves_its_photos_out() -> None:
    frame = predictions({"infonce": np.full(60, 0.5), "other": np.full(60, 0.5)})
    continents = pd.Series(["Asia"] * 40 + [None] * 20, [f"p{number:04d}" for number in range(60)])
    assert continent_gains(frame, continents)["n"].eq(40).all()
