"""Figures where there is little to draw, and what they leave behind."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from conftest import fitted, world
from matplotlib.figure import Figure
from PIL import Image

from lib.method.empirical import exact
from lib.show import figures


def words(figure):
    return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_without_a_second_strategy_or_weights_the_figure_says_so():
    empty = pd.DataFrame(
        columns=["strategy", "baseline", "metric", "difference", "ci_low", "ci_high", "split"]
    )
    assert "nothing to compare with infonce" in words(figures.forest(empty))
    unweighted = pd.DataFrame({"epoch": [1], "strategy": ["infonce"], "seed": [0]})
    assert "no weights" in words(figures.weights_over_training(unweighted))


def test_drawing_leaves_matplotlibs_settings_as_they_were():
    before = {name: value for name, value in mpl.rcParams.copy().items() if name != "backend"}
    figures.factor_effect()
    assert {name: mpl.rcParams[name] for name in before} == before


def test_a_multiplied_negative_logit_presses_less_and_a_positive_one_more():
    left, right = figures.factor_effect((1.0, 2.0)).axes
    plain, doubled = (line.get_ydata() for line in left.lines[:2])
    assert doubled[0] < plain[0] and doubled[-1] > plain[-1]
    plain, doubled = (line.get_ydata() for line in right.lines[:2])
    assert (doubled > plain).all()


def test_a_saved_figure_is_a_picture_and_a_pdf_with_the_same_bytes_twice(tmp_path):
    first, second = (tmp_path / name / "effect.png" for name in ("first", "second"))
    for path in (first, second):
        assert isinstance(figures.save(figures.factor_effect(), path), Figure)
    for ending in (".png", ".pdf"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()
    with Image.open(first) as image:
        assert image.width == pytest.approx(9 * 200, abs=2)


def test_a_handful_of_training_photos_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    places = {"latitude": 1.0, "longitude": 2.0, "split": "train"}
    manifest = pd.DataFrame({"path": [f"{number}.png" for number in range(3)], **places})
    figure = figures.photo_grid(manifest, tmp_path)
    assert sum(bool(axis.images) for axis in figure.axes) == 3 and len(figure.axes) == 18


@pytest.mark.parametrize("photos", [40, 400])
def test_lags_of_few_photos_are_drawn_and_of_many_those_of_thirty_pairs(photos: int) -> None:
    manifest, features = world({"train": photos})
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    empirical = exact(lambda rows: unit[rows], manifest[["latitude", "longitude"]].to_numpy(), 0.01)
    (means, *_), table = figures.semivariogram(empirical, fitted()).axes[1].lines, empirical.table()
    expected = len(table) if photos == 40 else (table["pairs"] >= 30).sum()
    assert len(means.get_xdata()) == expected > 100


def test_groups_of_held_out_cells_are_told_within_750_km_and_tiny_ones_not_at_all() -> None:
    groups = [("A", 40), ("B", 4), ("C", 20)]
    rows = [(split, *group) for split in ("test", "test_blocked") for group in groups]
    table = pd.DataFrame(rows, columns=["split", "continent", "n"])
    table = table.assign(strategy="infonce", acc_200km=0.1, acc_750km=0.5)
    near, far = figures.by_group(table, "continent").axes
    assert [axis.get_xlabel()[:20] for axis in (near, far)] == [
        "photos within 200 km",
        "photos within 750 km",
    ]
    assert [axis.collections[0].get_offsets()[0, 0] for axis in (near, far)] == [10.0, 50.0]
    assert [label.get_text() for label in near.get_yticklabels()] == ["C", "A"]
