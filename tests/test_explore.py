"""Pictures that answer to sliders: they start as what was fitted, say what the library says, and stand still where nobody looks."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import fitted
from PIL import Image

from lib.data import datasets, features, sampling
from lib.evaluate import pairs
from lib.method import negatives
from lib.method import semivariogram as sv
from lib.show import explore
from lib.train import training


@pytest.fixture
def run(make_run):
    made = make_run("training.strategies=infonce,decayed")
    root = made.folder / "photos"
    for number, path in enumerate(datasets.read(made)["path"]):
        (made.folder / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (number % 256, 90, 60)).save(made.folder / path)
    settings = made.settings.dataset.model_copy(update={"root": root.parent})
    object.__setattr__(made, "settings", made.settings.model_copy(update={"dataset": settings}))
    return made


@pytest.fixture
def curve_scene(run):
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    rows = datasets.manifest.rows_of(manifest, "train")
    places = datasets.manifest.coordinates(manifest)[rows]
    empirical = sampling.estimate(lambda chosen: frozen.unit(rows[chosen]), places, 0.05)
    return explore.CurveScene(run, pairs.sample(run, fitted(), 4_000), empirical, fitted())


def shown(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_at_the_start_the_curve_by_hand_is_the_fitted_one(curve_scene):
    curve_scene.png(curve_scene.start())
    kilometres, drawn = curve_scene.line.get_data()
    assert np.allclose(drawn, fitted().gamma(kilometres / 6371.0088), atol=1e-3)


def test_every_slider_changes_the_picture_and_the_way_back_gives_the_same_one(curve_scene):
    start = curve_scene.start()
    before = shown(curve_scene.png(start))
    moved = {"family": "Gaussian", "nugget": 0.5, "sill": 1.3, "range_km": 800.0, "rule": "decayed", "alpha": 6.0, "beta": 7.0}
    assert set(moved) == set(curve_scene.controls)
    for name, value in moved.items():
        assert (shown(curve_scene.png(start | {name: value})) != before).any(), name
    assert (shown(curve_scene.png(start)) == before).all()


def test_a_curve_is_stretched_to_its_range_and_keeps_nugget_and_sill():
    short = explore.stretched(fitted(), 0.2, 0.9, fitted().range_km / 2)
    assert short.gamma(np.array([1e-9, 50.0])) == pytest.approx([0.2, 0.9], abs=1e-3)
    whole, half = fitted(nugget=0.2, partial_sill=0.7).gamma(np.array([0.4])), short.gamma(np.array([0.2]))
    assert half == pytest.approx(whole)


@pytest.mark.parametrize("rule", explore.RULES)
def test_weights_of_pairs_are_those_of_the_strategy_in_a_training(run, rule):
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    places, unit = datasets.manifest.coordinates(manifest)[:12], frozen.unit(np.arange(12))
    import torch

    candidates = negatives.Candidates(
        torch.zeros(12, 12), unit, unit, torch.from_numpy(places).float(), torch.from_numpy(places).float(), sv.Curve(fitted()), 1.5, 2.5
    )  # fmt: skip
    inside = negatives.get(rule).reweight(candidates).log_weight
    first, second = np.triu_indices(12, 1)
    frame = pd.DataFrame({
        "distance_km": candidates.distance_rad[first, second].numpy() * 6371.0088,
        "dissimilarity": candidates.dissimilarity[first, second].numpy(),
    })  # fmt: skip
    outside = explore.log_weights(frame, sv.Curve(fitted()), rule, 1.5, 2.5)
    assert outside == pytest.approx(inside[first, second].numpy(), abs=1e-4)


def test_pairs_shown_are_of_their_kind_and_step_among_the_most_telling_and_no_photo_twice(run):
    seen = pairs.classify(pairs.sample(run, fitted(), 4_000), fitted())
    rows = explore.telling_rows(seen, fitted().range_km)
    steps = pairs.steps_of_distance(fitted().range_km)
    assert len(rows) == len(steps) == 8 and sum(row is not None for row in rows) >= 6
    photos = []
    for row, (kind, low, high) in zip(rows, steps, strict=True):
        if row is not None:
            pair = seen.iloc[row]
            assert pair["kind"] == kind and low <= pair["distance_km"] <= high
            inside = seen[(seen["kind"] == kind) & seen["distance_km"].between(low, high)]
            assert (inside["residual"] > pair["residual"]).mean() < 0.3
            photos += [pair["first"], pair["second"]]
    assert len(set(photos)) == len(photos)


def test_look_alikes_are_the_most_alike_and_of_the_kind_that_the_curve_gives_them(run):
    scene = explore.LookAlikeScene(run, fitted())
    found = scene.nearest(3, 20)
    everyone = 1.0 - (scene.unit @ scene.unit[3]).numpy()
    assert sorted(found["dissimilarity"]) == pytest.approx(np.sort(np.delete(everyone, 3))[:20])
    assert 3 not in set(found["number"])
    expected = pairs.classify(found[["distance_km", "dissimilarity"]], fitted())["kind"]
    assert list(found["kind"]) == list(expected)
    drawn = sum(len(dots.get_xdata()) for dots in scene.dots.values())
    scene.png({"photo": 3, "count": 20})
    assert (drawn, sum(len(dots.get_xdata()) for dots in scene.dots.values())) == (0, 20)


def histories_of(epochs):
    table = pd.DataFrame({"strategy": "decayed", "seed": 0, "epoch": epochs, "learned_nugget": 0.1, "learned_exponent": 1.0})
    return table.assign(learned_partial_sill=np.linspace(0.2, 0.8, len(table)), learned_length_scale_km=900.0)


def test_scrubbing_shows_the_curve_of_that_epoch(run):
    scene = explore.learning(run, histories_of([1, 2, 3])).scene
    ends = []
    for position in range(3):
        scene.png(scene.start() | {"position": position})
        ends.append(scene.line.get_ydata()[-1])
    assert ends == pytest.approx([0.3, 0.6, 0.9], abs=1e-3)
    assert "after epoch 3" in scene.title.get_text()


def test_a_traced_training_ends_with_the_weights_of_the_untraced_one(run, narrow, monkeypatch):
    monkeypatch.setattr(training, "_traced", lambda model, data: {f"learned_{name}": 0.5 for name in training.LEARNED})
    training.make(training.Job.of(run, "decayed", 0))
    history = explore.trace(run, "decayed")
    assert len(history) == run.settings.training.epochs and history["learned_nugget"].notna().all()
    plain, traced = (run.checkpoint(name, 0) for name in ("decayed", "decayed,traced"))
    import safetensors.torch

    plain, traced = (safetensors.torch.load_file(path) for path in (plain, traced))
    assert all((plain[name] == traced[name]).all() for name in plain)


def predictions():
    rows = []
    for strategy, errors in {"infonce": [3_000.0, 10.0, 50.0], "decayed": [20.0, 4_000.0, 50.0]}.items():
        for seed in (0, 1):
            for number, error in enumerate(errors):
                away = error / 111.195
                rows.append((f"p{number:04d}", "test", strategy, seed, 0.0, 179.0, away / 1e9, 179.0 + away - 360 * (179 + away > 180), error))
    names = ["id", "split", "strategy", "seed", "latitude", "longitude", "predicted_latitude", "predicted_longitude", "error_km"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize(("order", "first"), [("most gained", "p0000"), ("most lost", "p0001"), ("as they come", "p0000")])
def test_a_duel_begins_with_the_photo_that_the_order_puts_first(run, order, first):
    scene = explore.duel(run, predictions()).scene
    scene.png(scene.start() | {"order": order, "position": 0})
    assert scene.said.get_text().startswith(first)
    assert "in 33% of 3 photos decayed is nearer than infonce, in 33% farther" in scene.said.get_text()


def test_the_line_to_a_prediction_across_the_180th_meridian_has_no_jump(run):
    scene = explore.duel(run, predictions()).scene
    scene.png(scene.start() | {"position": 0})
    steps = np.abs(np.diff(scene.lines[1].get_xdata()))
    assert np.nanmax(steps) < 0.5


def test_where_nobody_looks_a_picture_stands_still_and_no_widget_is_made(run, monkeypatch):
    explorer = explore.duel(run, predictions())
    monkeypatch.setattr(explore, "is_watched", lambda: False)
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"} and shown(bundle["image/png"]).std() > 5


@pytest.mark.parametrize("reason", ["no kernel", "no widgets", "pictures only"])
def test_nobody_looks_without_kernel_without_widgets_and_under_the_pipeline(monkeypatch, reason):
    monkeypatch.setitem(explore.sys.modules, "ipykernel", object())
    monkeypatch.delenv(explore.PICTURES_ONLY, raising=False)
    assert explore.is_watched()
    if reason == "no kernel":
        monkeypatch.delitem(explore.sys.modules, "ipykernel")
    elif reason == "no widgets":
        monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setenv(explore.PICTURES_ONLY, "1")
    assert not explore.is_watched()


def test_a_moved_widget_draws_another_picture_and_a_button_moves_widgets(curve_scene):
    box = explore._box(curve_scene)
    row, picture, _ = box.children
    sliders = {one.description: one for one in row.children}
    before = picture.value
    sliders["nugget"].value = 0.6
    assert picture.value != before
    sliders["back to this family's fit"].click()
    assert sliders["nugget"].value == pytest.approx(fitted().nugget, abs=0.01)
    assert picture.value == before


def test_a_lost_photo_is_a_grey_square(run):
    shutil.rmtree(run.folder / "photos")
    explore.tile.cache_clear()
    assert len(np.unique(explore.tile(run.folder, "photos/p0001.jpg"))) <= 3
