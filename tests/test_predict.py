"""Where is this photo? Candidates of runs, releases and the published model; the command; the map."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browsing import Visit
from PIL import Image
from transformers import CLIPImageProcessor

from lib.data.backbones import Backbone
from lib.data.photos import GPS_IFD
from lib.data.sphere import uniform_on_sphere
from lib.exchange import export_geolocation
from lib.method import model
from lib.method.errors import BundleError
from lib.method.geodesy import distance_km
from lib.predict import predict, predictors
from lib.predict.predictors import Predictor, load_predictor
from lib.runs import cache
from lib.settings import PROJECT, Training
from lib.settings import Backbone as BackboneSettings
from lib.show import candidate_maps
from lib.show.candidate_maps import candidate_map
from lib.show.maps import save_map
from lib.train import checkpoints, gallery, training

CPU = torch.device("cpu")
PLACE = ["latitude", "longitude"]
TRUTH = ["true_latitude", "true_longitude"]


def colour_encoder():
    """A backbone whose features are a photo's mean colour."""
    small = lambda image: torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1)  # noqa: E731
    mean = lambda batch: batch.mean((2, 3))  # noqa: E731
    return Backbone("colour", 3, small, [0.0] * 3, [255.0] * 3, mean, torch.nn.Identity())


@pytest.fixture
def predictor(narrow):
    """A random model on mean colours among 400 places of the sphere."""
    trained = checkpoints.initialise(3, torch.zeros(3), 1.0, Training()).eval()
    places = uniform_on_sphere(400, np.random.default_rng(0))
    settings = BackboneSettings(precision="float32", storage="float32", batch_size=4)
    return Predictor(
        "a test", trained, colour_encoder(), settings, places, gallery.embed(trained, places, CPU)
    )


@pytest.fixture
def photos(tmp_path):
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
    def test_probabilities_are_a_softmax_over_the_whole_gallery(self, predictor):
        features = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
        found = predict.probabilities(predictor.model, features, predictor.embedded)
        with torch.inference_mode():
            cosine = predictor.model.embed_photos(features) @ predictor.embedded.T
        weight = np.exp(cosine.double().numpy() * predictor.model.logit_scale.exp().item())
        assert np.allclose(found, weight / weight.sum(1, keepdims=True), rtol=1e-4)
        assert np.allclose(found.sum(1), 1.0)

    def test_the_first_candidate_is_what_evaluation_retrieves(self, predictor, photos):
        found, encoder = predict.predict(predictor, photos, top=1).table, predictor.encoder
        images = torch.stack([encoder.preprocess(Image.open(path).convert("RGB")) for path in photos])
        _, rows = gallery.retrieve(predictor.model, encoder.encode(images), predictor.embedded)
        assert np.allclose(found[PLACE], predictor.gallery_deg[rows])

    def test_candidates_are_distinct_places_in_order_of_probability(self, predictor, photos):
        for _, rows in predict.predict(predictor, photos, top=4, apart_km=3_000.0).table.groupby("photo"):
            places = rows[PLACE].to_numpy()
            between = distance_km(places[:, None], places[None])[~np.eye(len(places), dtype=bool)]
            assert len(rows) == 4 and between.min() > 3_000.0
            assert rows["probability"].is_monotonic_decreasing and rows["rank"].tolist() == [1, 2, 3, 4]
            assert (rows["probability_within_200km"] >= rows["probability"] - 1e-12).all()

    def test_what_lies_within_200_km_is_summed(self, predictor, photos):
        near = np.array([[10.0, 10.0], [10.5, 10.0], [-40.0, 100.0]])  # 56 km, and half the Earth away
        three = replace(predictor, gallery_deg=near, embedded=predictor.embedded[:3])
        row = predict.predict(three, photos[:1], top=3, apart_km=100.0).table.set_index("latitude")
        alone = row.loc[-40.0]
        assert len(row) == 2 and alone["probability_within_200km"] == pytest.approx(alone["probability"])
        assert row["probability_within_200km"].sum() == pytest.approx(1.0)

    def test_the_error_is_told_where_exif_knows_the_place(self, predictor, photos):
        table = predict.predict(predictor, photos[:2]).table.set_index("photo")
        known, unknown = table.loc[photos[0]], table.loc[photos[1]]
        assert np.allclose(known[TRUTH], (48.8, 9.2))
        assert np.allclose(known["error_km"], distance_km(known[PLACE].to_numpy(), np.array((48.8, 9.2))))
        assert unknown[[*TRUTH, "error_km"]].isna().all(axis=None)

    def test_a_broken_photo_is_left_out_with_the_reason_and_others_go_on(self, predictor, photos):
        Path(photos[1]).write_bytes(b"no photo")
        found = predict.predict(predictor, [*photos, "nowhere.jpg"])
        (broken, one), (missing, other) = found.left_out.items()
        assert (broken, missing) == (photos[1], "nowhere.jpg")
        assert "cannot identify" in one and "No such file" in other
        assert found.table["photo"].nunique() == 4
        for named in ([photos[1]], []):
            nothing = predict.predict(predictor, named)
            assert nothing.table.empty and nothing.mass.empty and list(nothing.table) == predict.COLUMNS
        with pytest.raises(BundleError, match="named twice"):
            predict.predict(predictor, [photos[0]] * 2)


def finish(run, **accuracies):
    """Make ``run`` a finished one: a random model a strategy and seed, with these validation accuracies."""
    dimension = 3 if len(accuracies) > 1 else 1280
    for strategy, by_seed in accuracies.items():
        for seed, accuracy in enumerate(by_seed):
            trained = checkpoints.initialise(seed, torch.zeros(dimension), 1.0, Training())
            checkpoints.save(trained, run.checkpoint(strategy, seed))
            run.history(strategy, seed).parent.mkdir(exist_ok=True)
            epochs = pd.DataFrame({"epoch": [1, 2], "validation_acc_200km": [0.9 - accuracy, accuracy]})
            epochs.to_csv(run.history(strategy, seed), index=False)
            files = [run.checkpoint(strategy, seed), run.history(strategy, seed)]
            cache.write_receipt(run, f"training-{strategy}_seed{seed}", {}, files, 0.0)
    written = {"settings": run.settings.model_dump(mode="json"), "outputs": {}}
    run.provenance.write_text(json.dumps(written))
    return run


@pytest.fixture
def finished(make_run, narrow, monkeypatch):
    """A finished run on mean colours, two strategies and seeds; ``decayed`` is the better on validation."""
    run = make_run("training.strategies=infonce,decayed", "training.seeds=1,0", "backbone.centred=false")
    monkeypatch.setattr(predictors.backbones, "build", lambda *_: colour_encoder())
    return finish(run, infonce=(0.5, 0.6), decayed=(0.7, 0.6))


class TestWhichModel:
    def test_the_best_on_validation_is_taken_another_can_be_named_an_unknown_one_lists_all(self, finished):
        found = load_predictor(str(finished.folder))
        assert "strategy decayed (best on validation: 65.0 % within 200 km), seed 0" in found.description
        assert "trained on blue_marble" in found.description and "train, 96 places" in found.description
        expected = checkpoints.load(finished.checkpoint("decayed", 0)).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
        assert "infonce, seed 1" in load_predictor(str(finished.folder), "infonce", 1).title
        with pytest.raises(BundleError, match="no strategy residual; it has infonce, decayed"):
            load_predictor(str(finished.folder), "residual")
        with pytest.raises(BundleError, match="no seed 7; it has 1, 0"):
            load_predictor(str(finished.folder), seed=7)
        windows = PROJECT / finished.settings.dataset.root
        assert found.caution(windows, ["windows/1.jpg"]) == ""
        assert "satellite windows of 256 km" in found.caution(Path(), ["a.jpg"])

    def test_geoclip_as_published_predicts_as_the_package(self, tiny_clip, photos, monkeypatch):
        import geoclip
        from geoclip.model import image_encoder

        processor = CLIPImageProcessor.from_pretrained
        monkeypatch.setattr(image_encoder.AutoProcessor, "from_pretrained", processor)
        package = geoclip.GeoCLIP(clip_path=str(tiny_clip)).eval()
        package.gps_gallery = package.gps_gallery[:500]
        monkeypatch.setattr(predictors, "photo_places", package.gps_gallery.double().numpy)
        ours = load_predictor("geoclip", backbone=str(tiny_clip))
        assert ours.title == "GeoCLIP as its authors published it" and "500 places" in ours.description
        found = predict.predict(ours, photos[:2], top=3, apart_km=0.0).table
        for path in photos[:2]:
            expected, values = package.predict(path, top_k=3)
            rows = found[found["photo"] == path]
            assert np.allclose(rows[PLACE], expected, atol=1e-4)
            assert np.allclose(rows["probability"], values, rtol=1e-2)

    def test_a_finished_run_is_taken_as_it_is_and_a_notebook_trains(self, finished, make_run, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(cache, "needs_of", None)  # nothing asks what a stage depends on today
            patched.setattr(training, "_train_and_save", None)
            assert "decayed" in load_predictor(str(finished.folder)).title
        run = make_run("training.strategies=infonce", "training.epochs=1")
        monkeypatch.setattr(predictors.backbones, "build", lambda *_: replace(colour_encoder(), dimension=16))
        assert "strategy infonce" in predictors.of_run(run).title and run.checkpoint("infonce", 0).exists()

    @pytest.mark.parametrize(
        "name",
        ["checkpoints/decayed_seed0.safetensors", "history/infonce_seed1.csv", "features/features.npy",
         "provenance.json", "manifest.parquet"],
    )  # fmt: skip
    @pytest.mark.parametrize("is_there", [False, True])
    def test_a_missing_or_damaged_file_of_a_run_is_one_sentence(self, finished, name, is_there):
        path = finished.folder / name
        path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 2]) if is_there else path.unlink()
        with pytest.raises(BundleError) as raised:
            load_predictor(str(finished.folder))
        assert path.name in str(raised.value) and "\n" not in str(raised.value)

    def test_a_release_predicts_as_its_model(self, tiny_clip, photos, tmp_path, narrow, monkeypatch):
        trained = model.GeoCLIP(768, 0.1 * torch.randn(768), 0.5).eval()
        monkeypatch.setattr(type(trained.location_encoder), "sigma", [1, 16, 256], raising=False)
        places = uniform_on_sphere(50, np.random.default_rng(1))
        release = predictors.Release(trained, places, str(tiny_clip), None)
        folder = export_geolocation(release, tmp_path / "release")
        found = load_predictor(str(folder))
        features, embedded = predict._encoded(found, photos, Path())[0], gallery.embed(trained, places, CPU)
        ours = predict.probabilities(found.model, features, found.embedded)
        assert np.allclose(ours, predict.probabilities(trained, features, embedded), atol=1e-4)
        (folder / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(BundleError, match="not a release for geolocation"):
            predictors.read_geolocation(folder)


class TestCommand:
    def test_table_and_map_are_written_and_the_model_is_named_first(self, finished, photos, tmp_path, capsys):
        files = ["--csv", f"{tmp_path}/out.csv", "--map", f"{tmp_path}/out.html"]
        assert predict.main([*photos, "--model", str(finished.folder), "--top", "3", *files]) == 0
        said = capsys.readouterr().out
        assert said.startswith("model: run run0, strategy decayed") and "satellite windows" in said
        table = pd.read_csv(tmp_path / "out.csv")
        assert list(table) == predict.COLUMNS and len(table) == 15
        assert said.count("error, km") == 1 and f"{table['error_km'][0]:.1f}"[:-2] in said
        page = (tmp_path / "out.html").read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page)
        assert all(Path(photo).name.split("<")[0] in page for photo in photos)
        assert "<img src=x" not in page and '"warning":"This model was trained on satellite windows' in page

    def test_what_is_left_out_is_named_a_folder_means_its_photos(self, finished, photos, tmp_path, capsys):
        Path(photos[1]).write_bytes(b"")
        (tmp_path / "empty").mkdir()
        named = [photos[1], str(Path(photos[0]).parent / "sub"), f"{tmp_path}/empty"]
        assert predict.main([*named, "--model", str(finished.folder)]) == 0
        captured = capsys.readouterr()
        assert f"left out {photos[1]}: " in captured.err and "no photos in this folder" in captured.err
        assert "predicted 1 photos, left out 2" in captured.err and "c@d.jpg" in captured.out

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ("nowhere.jpg", "no photo could be read"),
            ("PHOTO --top 0", "at least one candidate"),
            ("PHOTO --strategy hcl", "no strategy hcl"),
            ("PHOTO --csv PHOTO", "is not overwritten: name a file that ends in .csv"),
            ("PHOTO --map MANIFEST", "is not overwritten: name a file that ends in .html"),
            ("PHOTO --model " + 300 * "a", "name too long"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, finished, photos, arguments, sentence, capsys):
        own = {"PHOTO": photos[0], "MANIFEST": str(finished.manifest)}
        before = {name: Path(path).read_bytes() for name, path in own.items()}
        given = [own.get(word, word) for word in arguments.split()]
        assert predict.main(["--model", str(finished.folder), *given]) == 1
        assert before == {name: Path(path).read_bytes() for name, path in own.items()}
        said = capsys.readouterr().err
        assert said.startswith("lib.predict: ") or "left out" in said
        assert sentence in said and "Traceback" not in said

    def test_a_photo_may_lie_in_an_archive(self, finished, photos, tmp_path, capsys):
        with zipfile.ZipFile(tmp_path / "windows-ab12.zip", "w") as archive:
            archive.write(photos[0], "000/bm_000000.jpg")
        inside = f"{tmp_path}/windows-ab12.zip/000/bm_000000.jpg"
        files = ["--csv", f"{tmp_path}/out.csv", "--map", f"{tmp_path}/out.html"]
        assert predict.main([photos[0], inside, "--model", str(finished.folder), *files]) == 0
        named = pd.read_csv(tmp_path / "out.csv").set_index("photo")
        one, other = (named.loc[photo].reset_index(drop=True) for photo in (photos[0], inside))
        assert one.equals(other) and np.allclose(other[TRUTH], (48.8, 9.2))
        assert '"unreadable":{}' in (tmp_path / "out.html").read_text()
        assert predict.main([inside.replace("bm_000000", "bm_000001"), "--model", str(finished.folder)]) == 1
        assert "no photo could be read" in capsys.readouterr().err


class TestMap:
    @pytest.fixture
    def found(self, predictor, photos):
        return predict.predict(predictor, photos, top=3, apart_km=1_000.0)

    @pytest.mark.parametrize("width", [1280, 390])
    def test_in_a_browser_it_draws_and_changes_photos(self, found, browser, tmp_path, width):
        drawn = candidate_map(found.table, found.mass, Path(), warning="Beware")
        path = save_map(drawn, tmp_path / "map.html")
        with Visit(browser, path, width) as visit:
            listed = visit.tab.locator(".panel ul button")
            assert listed.count() == 5 and visit.tab.locator(".banner").inner_text() == "Beware"
            assert visit.tab.locator(".hollow:not(.truth)").count() == 3
            background = "getComputedStyle(document.querySelector('.hollow')).backgroundColor"
            assert visit.tab.evaluate(background) == "rgba(0, 0, 0, 0)", "the heat is seen through a mark"
            visit.tab.locator(".next").click()
            assert visit.tab.locator(".panel .chosen").inner_text() == "b.png"
            visit.find("onerror")
            assert "onerror=alert" in visit.tab.locator(".panel .chosen").inner_text()
            visit.tab.locator(".panel ol button").first.click()
            assert visit.first_fact() == listed.last.get_attribute("title")
            assert visit.width() <= width

    def test_the_colour_is_proportional_to_the_probability(self, found, browser, tmp_path):
        near = pd.DataFrame({"photo": "a", "latitude": [0.0, 0.0], "longitude": [0.0, 90.0]})
        mass, one = near.assign(probability=[0.8, 0.2]), found.table[:1].assign(photo="a")
        path = save_map(candidate_map(one, mass, Path()), tmp_path / "map.html")
        with Visit(browser, path) as visit:
            squares = "Object.values(map._layers).filter((one) => one.options.fillColor && one.getBounds)"
            colours = visit.map(f"{squares}.map((one) => one.options.fillColor)")
            assert colours == [candidate_maps.RAMP[-1], candidate_maps.RAMP[len(candidate_maps.RAMP) // 4]]
            assert visit.map(f"{squares}.map((one) => one.options.fillOpacity)") == [0.95, 0.475]
            assert visit.tab.locator(".hollow").first.bounding_box()["width"] < 18, "no peak is under a mark"
            assert visit.tab.locator(".ticks").inner_text().split("\n")[-1] == "80\u00a0%"

    def test_countries_are_written_in_full(self, found):
        places = found.table[:2].assign(town=["Greenstone", ""], country=["CA", "AQ"])
        assert candidate_maps.place_names(places).tolist() == ["Greenstone, Canada", "Antarctica"]
