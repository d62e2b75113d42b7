"""Where is this photo? Candidates and probabilities of runs, releases and the published model; the command; the map."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browsing import CHROMIUM, MISSING, SWITCHES
from conftest import Runs
from PIL import Image
from test_folder import REAL
from transformers import CLIPImageProcessor

from lib.data.backbones import Backbone
from lib.data.photos import GPS_IFD
from lib.data.sphere import uniform_on_sphere
from lib.method import model
from lib.method.geodesy import distance_km
from lib.predict.predict import Prediction, exchange, predict, predictors, probabilities
from lib.predict.predictors import Predictor, PredictorError
from lib.runs import Run
from lib.settings import PROJECT, Training
from lib.settings import Backbone as BackboneSettings
from lib.show import candidate_maps
from lib.show.maps import save_map
from lib.train import checkpoints, gallery

CPU = torch.device("cpu")
TRUTH = (48.8, 9.2)


def colour_encoder() -> Backbone:
    """A backbone whose features are a photo's mean colour."""

    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((4, 4)))).permute(2, 0, 1).float() / 255

    return Backbone("colour", 3, preprocess, preprocess, lambda batch: batch.mean((2, 3)), torch.nn.Identity())


@pytest.fixture
def predictor(narrow: None) -> Predictor:
    """A random model on mean colours among 400 places of the sphere."""
    trained = checkpoints.initialise(3, torch.zeros(3), 1.0, Training()).eval()
    places = uniform_on_sphere(400, np.random.default_rng(0))
    settings = BackboneSettings(precision="float32", storage="float32", batch_size=4)
    return Predictor("test", "a test", trained, colour_encoder(), settings, places, gallery.embed(trained, places, CPU))


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Five photos of one colour each, the first with GPS, the last with a name that is markup."""
    names = ["a.jpg", "b.png", "sub/c@d.jpg", "e f.jpg", "<img src=x onerror=alert(1)>.jpg"]
    for number, name in enumerate(names):
        exif = Image.Exif()
        if number == 0:
            exif[GPS_IFD] = {1: "N", 2: (48.0, 48.0, 0.0), 3: "E", 4: (9.0, 12.0, 0.0)}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (50 * number, 200 - 30 * number, 90)).save(tmp_path / name, exif=exif)
    return [str(tmp_path / name) for name in names]


class TestPredict:
    def test_probabilities_are_a_softmax_over_the_whole_gallery(self, predictor: Predictor) -> None:
        features = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
        found = probabilities(predictor.model, features, predictor.embedded)
        with torch.inference_mode():
            cosine = predictor.model.embed_photos(features) @ predictor.embedded.T
        weight = np.exp(cosine.double().numpy() * float(predictor.model.logit_scale.exp()))
        assert np.allclose(found, weight / weight.sum(1, keepdims=True), rtol=1e-4)
        assert np.allclose(found.sum(1), 1.0)

    def test_the_first_candidate_is_what_evaluation_retrieves(self, predictor: Predictor, photos: list[str]) -> None:
        found = predict.predict(predictor, photos, top=1).table
        features = torch.stack([predictor.encoder.encode(predictor.encoder.preprocess(Image.open(path).convert("RGB"))[None])[0] for path in photos])
        expected = predictor.gallery_deg[gallery.retrieve(predictor.model, features, predictor.embedded)]
        assert np.allclose(found[["latitude", "longitude"]], expected)

    def test_candidates_are_distinct_places_in_order_of_probability(self, predictor: Predictor, photos: list[str]) -> None:
        apart_km = 3_000.0
        for _, rows in predict.predict(predictor, photos, top=4, apart_km=apart_km).table.groupby("photo"):
            places = rows[["latitude", "longitude"]].to_numpy()
            between = distance_km(places[:, None], places[None])[~np.eye(len(places), dtype=bool)]
            assert len(rows) == 4 and between.min() > apart_km
            assert rows["probability"].is_monotonic_decreasing and rows["rank"].tolist() == [1, 2, 3, 4]
            assert (rows["probability_within_200km"] >= rows["probability"] - 1e-12).all()

    def test_with_no_distance_asked_the_likeliest_points_are_taken(self, predictor: Predictor, photos: list[str]) -> None:
        found = predict.predict(predictor, photos[:1], top=7, apart_km=0.0)
        assert np.allclose(found.table["probability"], found.mass["probability"][:7], rtol=1e-5)

    def test_a_gallery_smaller_than_what_is_asked_gives_fewer(self, predictor: Predictor, photos: list[str]) -> None:
        small = replace(predictor, gallery_deg=predictor.gallery_deg[:2], embedded=predictor.embedded[:2])
        assert len(predict.predict(small, photos[:1], top=5, apart_km=0.0).table) == 2

    def test_what_lies_within_200_km_is_summed(self, predictor: Predictor, photos: list[str]) -> None:
        near = np.array([[10.0, 10.0], [10.5, 10.0], [-40.0, 100.0]])  # 56 km, and half the Earth away
        three = replace(predictor, gallery_deg=near, embedded=predictor.embedded[:3])
        row = predict.predict(three, photos[:1], top=3, apart_km=100.0).table.set_index("latitude")
        assert len(row) == 2 and row.loc[-40.0, "probability_within_200km"] == pytest.approx(row.loc[-40.0, "probability"])
        assert row["probability_within_200km"].sum() == pytest.approx(1.0)

    def test_the_error_is_told_where_exif_knows_the_place(self, predictor: Predictor, photos: list[str]) -> None:
        table = predict.predict(predictor, photos[:2]).table.set_index("photo")
        known, unknown = table.loc[photos[0]], table.loc[photos[1]]
        assert np.allclose(known[["true_latitude", "true_longitude"]], TRUTH)
        assert np.allclose(known["error_km"], distance_km(known[["latitude", "longitude"]].to_numpy(), np.array(TRUTH)))
        assert unknown[["true_latitude", "true_longitude", "error_km"]].isna().all(axis=None)

    def test_a_broken_photo_is_left_out_with_the_reason_and_others_go_on(self, predictor: Predictor, photos: list[str]) -> None:
        Path(photos[1]).write_bytes(b"no photo")
        found = predict.predict(predictor, [*photos, "nowhere.jpg"])
        assert found.left_out["photo"].tolist() == [photos[1], "nowhere.jpg"]
        assert "cannot identify" in found.left_out["reason"][0] and "No such file" in found.left_out["reason"][1]
        assert found.table["photo"].nunique() == 4

    def test_the_map_gets_nearly_all_of_the_probability(self, predictor: Predictor, photos: list[str]) -> None:
        sums = predict.predict(predictor, photos).mass.groupby("photo")["probability"].sum()
        assert (sums >= predict.MASS_SHARE - 1e-6).all() and (sums <= 1.0 + 1e-5).all()

    @pytest.mark.parametrize(("changes", "sentence"), [({"top": 0}, "at least one candidate"), ({"apart_km": -1.0}, "0 km or more")])
    def test_what_makes_no_sense_is_refused(self, predictor: Predictor, photos: list[str], changes: dict, sentence: str) -> None:
        with pytest.raises(predict.PredictError, match=sentence):
            predict.predict(predictor, photos, **changes)
        with pytest.raises(predict.PredictError, match="named twice"):
            predict.predict(predictor, [photos[0]] * 2)


@pytest.fixture
def finished(make_run: Runs, tmp_path: Path, narrow: None, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run on mean colours with two strategies and seeds, of which ``decayed`` is the better on validation."""
    run = make_run("training.strategies=infonce,decayed", "training.seeds=1,0", "backbone.centred=false")
    for strategy, accuracies in {"infonce": (0.5, 0.6), "decayed": (0.7, 0.6)}.items():
        for seed, accuracy in enumerate(accuracies):
            checkpoints.save(checkpoints.initialise(seed, torch.zeros(3), 1.0, Training()), run.checkpoint(strategy, seed))
            run.history(strategy, seed).parent.mkdir(exist_ok=True)
            epochs = pd.DataFrame({"epoch": [1, 2], "validation_acc_200km": [0.9 - accuracy, accuracy]})
            epochs.to_csv(run.history(strategy, seed), index=False)
    (run.folder / "manifest.json").write_text(f'{{"settings": {run.settings.model_dump_json()}}}')
    monkeypatch.setattr(predictors.backbones, "build", lambda *_: colour_encoder())
    return run


class TestWhichModel:
    def test_the_best_on_validation_and_the_smallest_seed_are_taken_and_said(self, finished: Run) -> None:
        found = predictors.load_predictor(str(finished.folder))
        assert "strategy decayed (best on validation: 65.0 % within 200 km), seed 0" in found.description
        assert "gallery train, 96 places" in found.description and "trained on blue_marble" in found.description
        expected = checkpoints.load(finished.checkpoint("decayed", 0)).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())

    def test_another_can_be_named_and_an_unknown_one_lists_what_there_is(self, finished: Run) -> None:
        assert "infonce, seed 1" in predictors.load_predictor(str(finished.folder), "infonce", 1).title
        with pytest.raises(PredictorError, match="no strategy residual; it has infonce, decayed"):
            predictors.load_predictor(str(finished.folder), "residual")
        with pytest.raises(PredictorError, match="no seed 7; it has 1, 0"):
            predictors.load_predictor(str(finished.folder), seed=7)

    def test_a_model_of_satellite_windows_says_so_of_other_photos_only(self, finished: Run, photos: list[str]) -> None:
        found = predictors.load_predictor(str(finished.folder))
        assert "satellite windows of 256 km" in found.caution(Path(), photos)
        assert found.caution(PROJECT / finished.settings.dataset.root, ["windows/1.jpg"]) == ""

    def test_without_a_run_the_sentence_lists_what_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(predictors, "RESULTS", tmp_path)
        with pytest.raises(PredictorError, match="--model is needed: finished runs under .*: none; or take geoclip"):
            predictors.find_run()
        with pytest.raises(PredictorError, match="--model nowhere: no such folder"):
            predictors.find_run("nowhere")
        for name in ("other", "quick"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "manifest.json").touch()
            assert predictors.find_run() == tmp_path / name

    def test_geoclip_as_published_predicts_what_the_package_predicts(self, tiny_clip: Path, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import geoclip
        from geoclip.model import image_encoder

        monkeypatch.setattr(image_encoder.AutoProcessor, "from_pretrained", CLIPImageProcessor.from_pretrained)
        package = geoclip.GeoCLIP(clip_path=str(tiny_clip)).eval()
        package.gps_gallery = package.gps_gallery[:500]
        pd.DataFrame(package.gps_gallery.numpy(), columns=["LAT", "LON"]).to_csv(tmp_path / "places.csv", index=False)
        ours = predictors.load_predictor("geoclip", gallery_name=f"{tmp_path}/places.csv", backbone=str(tiny_clip), device="cpu")
        assert "GeoCLIP as its authors published it" in ours.description and "500 places" in ours.description
        found = predict.predict(ours, photos[:2], top=3, apart_km=0.0).table
        for path in photos[:2]:
            places, values = package.predict(path, top_k=3)
            rows = found[found["photo"] == path]
            assert np.allclose(rows[["latitude", "longitude"]], places, atol=1e-4)
            assert np.allclose(rows["probability"], values, rtol=1e-2)

    def test_a_release_predicts_what_its_model_predicts(self, tiny_clip: Path, photos: list[str], tmp_path: Path, narrow: None) -> None:
        trained = model.GeoCLIP(768, 0.1 * torch.randn(768), 0.5).eval()
        trained.location_encoder.sigma = [1, 16, 256]
        places = uniform_on_sphere(50, np.random.default_rng(1))
        monkey = pytest.MonkeyPatch()
        monkey.setattr(type(trained.location_encoder), "sigma", [1, 16, 256], raising=False)
        folder = exchange.export_geolocation(trained, places, tmp_path / "release", str(tiny_clip), None)
        found = predictors.load_predictor(str(folder), device="cpu")
        monkey.undo()
        features = torch.from_numpy(predict._encoded(found, photos, Path()).numpy())
        assert np.allclose(
            probabilities(found.model, features, found.embedded),
            probabilities(trained, features, gallery.embed(trained, places, CPU)),
            atol=1e-4,
        )
        with pytest.raises(exchange.ExchangeError, match="not a release for geolocation"):
            (folder / "model.safetensors").write_bytes(b"torn")
            exchange.read_geolocation(folder)


class TestCommand:
    def test_table_and_map_are_written_and_the_model_is_named_first(self, finished: Run, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        arguments = [*photos, "--model", str(finished.folder), "--top", "3", "--csv", f"{tmp_path}/out.csv", "--map", f"{tmp_path}/out.html"]
        assert predict.main(arguments) == 0
        said = capsys.readouterr().out
        assert said.startswith("model: run run0, strategy decayed") and "satellite windows" in said
        table = pd.read_csv(tmp_path / "out.csv")
        assert list(table) == list(predict.COLUMNS) and len(table) == 15
        assert f"candidate 1 is {table['error_km'][0]:,.0f} km away" in said
        page = (tmp_path / "out.html").read_text()
        assert "<img src=x" not in page

    def test_what_is_left_out_is_named_and_a_folder_means_the_photos_in_it(self, finished: Run, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        Path(photos[1]).write_bytes(b"")
        (tmp_path / "empty").mkdir()
        root = str(Path(photos[0]).parent / "sub")
        assert predict.main([photos[1], root, f"{tmp_path}/empty", "--model", str(finished.folder)]) == 0
        captured = capsys.readouterr()
        assert f"left out {photos[1]}: " in captured.err and "no photos in this folder" in captured.err
        assert "predicted 1 photos, left out 2" in captured.err and "c@d.jpg" in captured.out

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["nowhere.jpg"], "no photo could be read"),
            (["PHOTO", "--top", "0"], "at least one candidate"),
            (["PHOTO", "--top", "many"], "invalid int value"),
            (["PHOTO", "--strategy", "hcl"], "no strategy hcl"),
            (["PHOTO", "--gallery", "moon"], "gallery='moon' is unknown"),
            (["PHOTO", "--csv", "/"], "is a folder; name a file"),
            ([], "the following arguments are required: PHOTO"),
        ],
    )
    def test_a_mistake_is_answered_with_one_sentence_and_status_1(self, finished: Run, photos: list[str], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
        given = [photos[0] if word == "PHOTO" else word for word in arguments]
        try:
            status = predict.main([*given, "--model", str(finished.folder)] if given else [])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr().err
        assert status == 1 and sentence in said and "Traceback" not in said

    @pytest.mark.skipif(not REAL.is_dir(), reason="the street-level photos to develop against are not here")
    def test_real_photos_go_through_with_the_offline_backbone(self, make_run: Runs, tmp_path: Path, narrow: None, capsys: pytest.CaptureFixture) -> None:
        run = make_run("training.strategies=infonce", "backbone.centred=false")
        checkpoints.save(checkpoints.initialise(0, torch.zeros(1280), 1.0, Training()), run.checkpoint("infonce", 0))
        run.history("infonce", 0).parent.mkdir(exist_ok=True)
        pd.DataFrame({"epoch": [1], "validation_acc_200km": [0.0]}).to_csv(run.history("infonce", 0), index=False)
        (run.folder / "manifest.json").write_text(f'{{"settings": {run.settings.model_dump_json()}}}')
        assert predict.main([str(REAL / "images"), "--model", str(run.folder), "--csv", f"{tmp_path}/out.csv", "--map", f"{tmp_path}/out.html"]) == 0
        table = pd.read_csv(tmp_path / "out.csv")
        assert table["photo"].nunique() == 31 and table["probability"].between(0, 1).all()
        assert (tmp_path / "out.html").stat().st_size < 10e6


@pytest.fixture
def found(predictor: Predictor, photos: list[str]) -> Prediction:
    return predict.predict(predictor, photos, top=3, apart_km=1_000.0)


class TestMap:
    def test_it_holds_every_photo_as_data_only_and_fetches_nothing(self, found: Prediction, photos: list[str], tmp_path: Path) -> None:
        page = save_map(candidate_maps.candidate_map(found.table, found.mass, Path(), title="<b>&"), tmp_path / "map.html").read_text()
        assert "<img src=x" not in page and "<b>&" not in page
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page)
        assert all(os.path.basename(photo).split("<")[0] in page for photo in photos)

    def test_a_table_without_its_columns_or_rows_is_named(self, found: Prediction) -> None:
        with pytest.raises(ValueError, match="lack the column 'rank'"):
            candidate_maps.candidate_map(found.table.drop(columns="rank"), found.mass, Path())
        with pytest.raises(ValueError, match="have no rows"):
            candidate_maps.candidate_map(found.table[:0], found.mass, Path())
        with pytest.raises(ValueError, match="has candidates but no mass"):
            candidate_maps.candidate_map(found.table, found.mass[:1], Path())

    @pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
    @pytest.mark.parametrize("width", [1280, 390])
    def test_in_a_browser_without_a_network_it_draws_and_changes_photos(self, found: Prediction, photos: list[str], tmp_path: Path, width: int) -> None:
        from playwright.sync_api import sync_playwright

        path = save_map(candidate_maps.candidate_map(found.table, found.mass, Path(), title="A test"), tmp_path / "map.html")
        problems = []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
            context = browser.new_context(viewport={"width": width, "height": 800})
            context.set_offline(True)
            page = context.new_page()
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("dialog", lambda dialog: problems.append("a file's name was executed") or dialog.dismiss())
            page.goto(path.as_uri())
            page.wait_for_timeout(600)
            before = page.screenshot()
            shown = page.inner_text("body")
            assert "A test" in shown and "a.jpg" in shown and "%" in shown
            page.get_by_text("onerror=alert").first.click()
            page.wait_for_timeout(600)
            after = page.screenshot()
            browser.close()
        assert problems == [] and before != after


def test_without_pictures_of_their_own_examples_come_from_the_test_split(make_run: Runs, predictor: Predictor, tmp_path: Path) -> None:
    run = make_run(f"dataset.root={tmp_path / 'data'}", "evaluation.splits=test_blocked")
    manifest = pd.read_parquet(run.manifest).set_index("path")
    for path in manifest.index:
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (90, 10, 10)).save(tmp_path / "data" / path)
    table = predict.predict_examples(run, predictor, 4).table
    rows = manifest.loc[table["photo"].unique()]
    assert len(rows) == 4 and set(rows["split"]) == {"test_blocked"}
    assert np.allclose(table.drop_duplicates("photo")[["true_latitude", "true_longitude"]], rows[["latitude", "longitude"]])
    few = manifest[manifest["split"] == "test_blocked"][:2].reset_index()
    few.to_parquet(run.manifest, index=False)
    assert predict.predict_examples(run, predictor, 4).table["photo"].nunique() == 2  # and none twice


def test_table_and_map_cannot_be_one_file(photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert predict.main([photos[0], "--csv", f"{tmp_path}/x", "--map", f"{tmp_path}/sub/../x"]) == 1
    assert "cannot be both the table and the map" in capsys.readouterr().err
