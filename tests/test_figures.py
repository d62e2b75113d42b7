"""Figures where there is little to draw, what they leave behind, and one look for each strategy."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from conftest import fitted, world
from matplotlib.figure import Figure
from PIL import Image

from lib.method.empirical import EmpiricalSemivariogram, exact
from lib.method.negatives import REGISTRY
from lib.show import figures, style


def measured(photos: int, width_rad: float) -> EmpiricalSemivariogram:
    manifest, features = world({"train": photos})
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    return exact(lambda rows: unit[rows], manifest[["latitude", "longitude"]].to_numpy(), width_rad)


@pytest.fixture
def empirical():
    return measured(60, 0.05)


def test_no_two_strategies_share_a_look_and_black_and_white_tells_them_apart():
    named = {name: style.look_of(name) for name in [*REGISTRY, *style.LOOKS, "of_a_user"]}
    looks = [(look["color"], look["ls"], look["marker"]) for look in named.values()]
    assert len({look[1:] for look in looks}) == len(looks) and set(REGISTRY) <= set(style.LOOKS)
    for kind in ("color", "ls", "marker"):
        assert len({style.LOOKS[name][kind] for name in style.FIRST}) == 7, kind


def test_names_that_people_read_stand_in_figures_and_test_is_random_only_beside_held_out_cells():
    columns = {"strategy": "margin_frequencies", "error_km": 10.0}
    both = pd.DataFrame([columns | {"split": split} for split in ("test", "test_blocked")])
    (near, far), alone = figures.error_distribution(both).axes, figures.error_distribution(both[:1]).axes[0]
    titles = [axis.get_title("left").strip() for axis in (near, far, alone)]
    assert titles == ["random photos", "held-out cells", "test"]
    assert near.get_legend().get_texts()[0].get_text() == "margin + scales"


def test_without_a_second_strategy_the_figure_says_so():
    columns = ["strategy", "baseline", "metric", "difference", "ci_low", "ci_high", "split"]
    (said,) = figures.forest(pd.DataFrame(columns=columns)).texts
    assert "nothing to compare with GeoCLIP’s loss" in said.get_text()


def test_a_users_settings_of_matplotlib_change_no_figure(tmp_path, empirical):
    odd = {"axes.facecolor": "black", "text.usetex": True, "savefig.facecolor": "black", "image.cmap": "jet"}
    for name, settings in (("plain", {}), ("odd", odd)):
        with mpl.rc_context(settings):
            before = {**mpl.rcParams.copy(), "backend": ""}
            figures.save(figures.margin(empirical, fitted(), 4.0), tmp_path / f"{name}.png")
            assert {**mpl.rcParams.copy(), "backend": ""} == before  # found only when it is needed
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


def test_a_saved_figure_is_a_picture_and_a_pdf_with_the_same_bytes_twice(tmp_path, empirical):
    first, second = (tmp_path / name / "margin.png" for name in ("first", "second"))
    for path in (first, second):
        assert isinstance(figures.save(figures.margin(empirical, fitted(), 4.0), path), Figure)
    for ending in (".png", ".pdf"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()
    with Image.open(first) as image:
        assert image.width == pytest.approx(10 * 200, abs=2)


def test_a_handful_of_training_photos_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    places = {"latitude": 1.0, "longitude": 2.0, "split": "train"}
    manifest = pd.DataFrame({"path": [f"{number}.png" for number in range(3)], **places})
    figure = figures.photo_grid(manifest, tmp_path)
    assert sum(bool(axis.images) for axis in figure.axes) == 3 and len(figure.axes) == 18


@pytest.mark.parametrize("photos", [40, 400])
def test_lags_of_few_photos_are_drawn_and_of_many_those_of_thirty_pairs(photos: int) -> None:
    empirical = measured(photos, 0.01)
    (means, *_), table = figures.semivariogram(empirical, fitted()).axes[1].lines, empirical.table()
    expected = len(table) if photos == 40 else (table["pairs"] >= 30).sum()
    assert len(means.get_xdata()) == expected > 100


def test_held_out_cells_are_reported_within_750_km_with_intervals_and_few_photos_are_left_out() -> None:
    groups = [("A", 40), ("B", 4), ("C", 20)]
    rows = [(split, *group) for split in ("test", "test_blocked") for group in groups]
    table = pd.DataFrame(rows, columns=["split", "continent", "n"])
    table = table.assign(strategy="infonce", value=[0.1, 0.1, 0.1, 0.5, 0.5, 0.5], ci_low=0.0, ci_high=0.9)
    table.loc[table["continent"] == "C", ["ci_low", "ci_high"]] = float("nan")
    near, far = figures.by_continent(table).axes
    for axis, radius, percent in ((near, 200, 10.0), (far, 750, 50.0)):
        assert axis.get_xlabel() == f"photos within {radius} km, %"
        sure, pale = (line for line in axis.lines if line.get_marker() == "o")
        assert list(sure.get_xdata()) == [percent] == list(pale.get_xdata()) and pale.get_alpha() < 0.5
        assert axis.collections[0].get_segments()[0][:, 0].tolist() == [0.0, 90.0]
    assert [label.get_text() for label in near.get_yticklabels()] == ["C", "A"]


def test_what_a_figure_says_of_distances_intervals_and_probabilities(tmp_path: Path, empirical) -> None:
    lower = figures.margin(empirical, fitted(), 4.0, 255).axes[2]
    pairs = empirical.table()
    near = 255 * pairs.loc[pairs["lag_km"] <= 500, "pairs"].sum() / pairs["pairs"].sum()
    assert lower.texts[0].get_text() == f"{near:.2g} of 255\nwithin 500 km"
    Image.new("RGB", (8, 8), (10, 60, 30)).save(tmp_path / "dark.png")
    photo = {"photo": "dark.png", "path": "dark.png", "rank": 1, "latitude": 1.0, "longitude": 2.0}
    photo |= {"true_latitude": 1.0, "true_longitude": 3.0, "error_km": 111.0, "probability": 0.5}
    table = pd.DataFrame([photo])
    *_, bar = figures.candidates(table, table, tmp_path).axes
    assert "%" in bar.get_xlabel() and "ring: true place" in bar.get_xlabel()
    answered = pd.Series(photo | {"predicted_latitude": 5.0, "predicted_longitude": 179.0})
    shown = figures.answer(answered, tmp_path).axes[0].images[0].get_array()
    assert shown.max() == 180  # of 60: threefold, no more
