"""Three pictures to explore: they say what the library says, follow their controls, and are static outside
Jupyter."""

import numpy as np
import pandas as pd
import pyproj
import pytest
from conftest import fitted
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lib.data import datasets, features
from lib.evaluate import pairs
from lib.method.empirical import exact
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.show import explore, maps


@pytest.fixture
def run(make_run):
    made = make_run("training.strategies=infonce,decayed")
    for number, path in enumerate(features.photos(made)["path"]):
        photo = datasets.root_of(made) / path
        photo.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (number % 256, 90, 60)).save(photo)
    return made


@pytest.fixture
def empirical(run):
    manifest = features.photos(run)
    frozen = features.read(run, manifest)
    rows = datasets.manifest.rows_of(manifest, "train")
    places = datasets.manifest.coordinates(manifest)[rows]
    return exact(lambda chosen: frozen.unit(rows[chosen]), places, 0.05)


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    """Nobody looks, whatever other tests of this process have imported."""
    monkeypatch.setenv(explore.PICTURES_ONLY, "1")


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_at_the_start_the_curve_by_hand_is_the_fitted_one(run, empirical):
    figure = explore.curve(pairs.sample(run, fitted(), 4_000), empirical, fitted())
    drawn = {line.get_label(): line for line in figure.axes[0].lines}["γ(h): expected"]
    kilometres, gamma = drawn.get_data()
    assert np.allclose(gamma, fitted().gamma(kilometres / 6371.0088), atol=1e-3)


def test_every_control_of_the_curve_changes_the_picture(run, empirical, monkeypatch):
    monkeypatch.setattr(explore, "is_watched", lambda: True)
    box = explore.curve(pairs.sample(run, fitted(), 4_000), empirical, fitted())
    controls = {one.description: one for one in box.children[:-1]}
    moved = {"nugget": 0.5, "sill": 1.3, "range_km": 800.0}
    assert set(moved) == set(controls)
    start = {name: control.value for name, control in controls.items()}
    before = pixels(box.f(**start))
    for name, value in moved.items():
        assert (pixels(box.f(**start | {name: value})) != before).any(), name
    controls["nugget"].value = 0.6
    assert 0.6 in [line.get_ydata()[0] for line in box.result.axes[0].lines]


def test_a_curve_by_hand_is_stretched_to_its_range_and_keeps_nugget_and_sill():
    shape = fitted(nugget=0.2, partial_sill=0.7)
    short = explore.by_hand(shape, 0.2, 0.9, shape.range_km / 2)
    assert short.gamma(np.array([1e-9, 50.0])) == pytest.approx([0.2, 0.9], abs=1e-3)
    assert short.gamma(np.array([0.2])) == pytest.approx(shape.gamma(np.array([0.4])))


def test_look_alikes_are_the_most_alike_and_of_the_kind_that_the_curve_gives_them(run):
    manifest = features.photos(run)
    photos, unit = manifest.head(40), features.read(run, manifest).unit(np.arange(40))
    found = explore.most_alike(photos, unit, fitted(), 3, 20)
    everyone = 1.0 - (unit @ unit[3]).numpy()
    assert list(found["dissimilarity"]) == pytest.approx(np.sort(np.delete(everyone, 3))[:20])
    assert photos["id"].iloc[3] not in set(found["id"])
    assert list(found["kind"]) == list(pairs.classify(found, fitted())["kind"])


def test_a_photo_stands_beside_its_look_alikes_and_the_map_counts_them(run):
    figure = explore.look_alikes(run, fitted())
    assert sum(bool(axis.images) for axis in figure.axes) == 8
    labels = figure.axes[-1].get_legend_handles_labels()[1]
    assert sum(int(label.split("(")[1][:-1]) for label in labels[:-1]) == 50


def predictions():
    rows = []
    for strategy, errors in {"infonce": [3_000.0, 10.0, 50.0], "decayed": [20.0, 4_000.0, 50.0]}.items():
        for seed in (0, 1):
            for number, error in enumerate(errors):
                away = error / 111.195
                east = 179.0 + away - 360 * (179 + away > 180)
                rows.append((f"p{number:04d}", "test", strategy, seed, 0.0, 179.0, away / 1e9, east, error))
    return pd.DataFrame(rows, columns=maps.COLUMNS[:-1])


def test_two_strategies_are_drawn_with_their_errors_and_lines_that_do_not_jump(run):
    figure = explore.two_strategies(run, predictions())
    world = figure.axes[-1]
    assert "decayed is nearer than GeoCLIP’s loss in 33% of 3 photos, farther in 33%" in world.get_title(
        loc="left"
    )
    assert "GeoCLIP’s loss: 10, 10 km" in world.get_legend_handles_labels()[1]
    steps = [
        np.nanmax(np.abs(np.diff(line.get_xdata()))) for line in world.lines if len(line.get_xdata()) > 2
    ]
    assert steps and max(steps) < 0.5
    third = predictions().query("strategy == 'decayed'").assign(strategy="similarity")
    figure = explore.two_strategies(run, pd.concat((predictions(), third)), "similarity")
    assert figure.axes[-1].get_title(loc="left").startswith("similarity is nearer than GeoCLIP’s loss")
    (datasets.root_of(run) / "photos" / "p0001.jpg").unlink()
    assert "This photo is not there" in explore.two_strategies(run, predictions()).axes[0].texts[0].get_text()


def test_the_great_circle_is_that_of_pyproj_and_is_cut_at_the_180th_meridian():
    sphere = pyproj.Geod(a=EARTH_RADIUS_KM * 1000.0, f=0.0)
    for start, end in (
        ((48.0, 11.0), (-33.9, 151.2)),
        ((60.0, -150.0), (65.0, -20.0)),
        ((10.0, 179.0), (12.0, -178.0)),
    ):
        ours = explore.great_circle(np.array([start, end]))
        theirs = np.array(sphere.npts(start[1], start[0], end[1], end[0], 179))[:, ::-1]
        lost = np.isnan(ours).any(axis=1)
        assert np.allclose(ours[1:-1][~lost[1:-1]], theirs[~lost[1:-1]], atol=1e-7)
        assert lost.sum() == (start[1] == 179.0) and np.allclose(ours[[0, -1]], (start, end))
    assert np.allclose(explore.great_circle(np.array([start, start])), start)


def test_photos_are_ordered_from_the_largest_gain_to_the_largest_loss():
    ordered = explore.from_gain_to_loss(predictions(), "decayed", "infonce")
    assert list(ordered.index) == ["p0000", "p0002", "p0001"]


def test_pictures_are_static_without_kernel_without_widgets_and_under_the_pipeline(monkeypatch):
    monkeypatch.setitem(explore.sys.modules, "ipykernel", object())
    assert not explore.is_watched()
    monkeypatch.delenv(explore.PICTURES_ONLY)
    assert explore.is_watched()
    with monkeypatch.context() as patch:
        patch.setattr(explore.importlib.util, "find_spec", lambda name: None)
        assert not explore.is_watched()
    monkeypatch.delitem(explore.sys.modules, "ipykernel")
    assert not explore.is_watched()
