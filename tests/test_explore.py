"""Two pictures to explore: they say what the library says, follow their controls, and are static where the
pipeline asks for that."""

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
from lib.show import explore, maps, style


@pytest.fixture
def run(make_run, monkeypatch):
    """A run with photos; pictures without controls, as the pipeline asks for."""
    monkeypatch.setenv(explore.PICTURES_ONLY, "1")
    made = make_run("training.strategies=infonce,decayed")
    for number, path in enumerate(features.photos(made)["path"]):
        photo = datasets.root_of(made) / path
        photo.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (number % 256, 90, 60)).save(photo)
    return made


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_the_curve_is_the_fitted_one_at_first_and_every_control_changes_it(run, monkeypatch):
    manifest = features.photos(run)
    frozen, rows = features.read(run, manifest), datasets.manifest.rows_of(manifest, "train")
    places = datasets.manifest.coordinates(manifest)[rows]
    empirical = exact(lambda chosen: frozen.unit(rows[chosen]), places, 0.05)
    given = pairs.sample(run, fitted(), 4_000), empirical, fitted()
    static = explore.curve(*given)
    drawn = {line.get_label(): line for line in static.axes[0].lines}["γ(h): expected"]
    kilometres, gamma = drawn.get_data()
    assert np.allclose(gamma, fitted().gamma(kilometres / 6371.0088), atol=1e-3)

    monkeypatch.delenv(explore.PICTURES_ONLY)
    box = explore.curve(*given)
    controls = {one.description: one for one in box.children[:-1]}
    moved = {"nugget": 0.5, "sill": 1.3, "range_km": 800.0}
    assert set(moved) == set(controls)
    start, before = {name: control.value for name, control in controls.items()}, pixels(static)
    for name, value in moved.items():
        assert (pixels(box.f(**start | {name: value})) != before).any(), name
    controls["nugget"].value = 0.6
    assert 0.6 in [line.get_ydata()[0] for line in box.result.axes[0].lines]


def test_a_curve_by_hand_is_stretched_to_its_range_and_keeps_nugget_and_sill():
    shape = fitted(nugget=0.2, partial_sill=0.7)
    short = explore.by_hand(shape, 0.2, 0.9, shape.range_km / 2)
    assert short.gamma(np.array([1e-9, 50.0])) == pytest.approx([0.2, 0.9], abs=1e-3)
    assert short.gamma(np.array([0.2])) == pytest.approx(shape.gamma(np.array([0.4])))


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
    said = "decayed is nearer than GeoCLIP’s loss in 33% of 3 photos, farther in 33%"
    assert world.get_title(loc="left") == said
    assert "GeoCLIP’s loss: 10, 10 km" in world.get_legend_handles_labels()[1]
    lines = [line.get_xdata() for line in world.lines if len(line.get_xdata()) > 2]
    steps = [np.nanmax(np.abs(np.diff(line))) for line in lines]
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
        ours = np.degrees(style.great_circle(np.array([start, end]))).T[:, ::-1]
        theirs = np.array(sphere.npts(start[1], start[0], end[1], end[0], 179))[:, ::-1]
        lost = np.isnan(ours).any(axis=1)
        assert np.allclose(ours[1:-1][~lost[1:-1]], theirs[~lost[1:-1]], atol=1e-7)
        assert lost.sum() == (start[1] == 179.0) and np.allclose(ours[[0, -1]], (start, end))
    assert np.allclose(np.degrees(style.great_circle(np.array([start, start])))[::-1].T, start)


def test_photos_are_ordered_from_the_largest_gain_to_the_largest_loss():
    ordered = explore.from_gain_to_loss(predictions(), "decayed", "infonce")
    assert list(ordered.index) == ["p0000", "p0002", "p0001"]
