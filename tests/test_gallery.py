"""Statements about galleries of candidate places and the retrieval among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, world

from lib.data import features, places
from lib.data.sphere import uniform_on_sphere
from lib.method.errors import BundleError
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.method.model import GeoCLIP
from lib.runs import Run
from lib.train import gallery


def coordinates_of(run: Run) -> np.ndarray:
    return gallery.coordinates(run, features.photos(run))


class TestCoordinates:
    def test_train_is_the_training_splits_places(self, make_run: Runs) -> None:
        manifest = world()[0]
        train = manifest[manifest["split"] == "train"]
        assert np.array_equal(coordinates_of(make_run()), train[["latitude", "longitude"]].to_numpy())

    def test_the_lattice_covers_the_land_within_the_photos_latitudes(self, make_run: Runs) -> None:
        found = coordinates_of(make_run("evaluation.gallery=lattice", "evaluation.lattice_km=200"))
        limit = world()[0]["latitude"].abs().max()
        assert places.is_land(found).all()
        assert np.abs(found[:, 0]).max() <= limit
        land_share = len(found) * 200.0**2 / (4.0 * np.pi * EARTH_RADIUS_KM**2)
        assert 0.24 < land_share < 0.28  # 29 % of the globe, less Antarctica and the far north

    def test_geoclips_own_has_100000_places(self, make_run: Runs) -> None:
        found = coordinates_of(make_run("evaluation.gallery=geoclip"))
        assert found.shape == (100_000, 2)
        assert (np.abs(found) <= [90.0, 180.0]).all()

    def test_a_csv(self, make_run: Runs, tmp_path: Path) -> None:
        (tmp_path / "places.csv").write_text("name,LON,LAT\na,11.5,48\nb,-180,-90\n")
        found = coordinates_of(make_run(f"evaluation.gallery={tmp_path / 'places.csv'}"))
        assert found.tolist() == [[48.0, 11.5], [-90.0, -180.0]]

    @pytest.mark.parametrize(
        ("order", "is_said"), [(["latitude", "longitude"], False), (["longitude"] * 2, True)]
    )
    def test_one_that_lies_far_from_the_training_photos_is_said(
        self, make_run: Runs, tmp_path: Path, capsys: pytest.CaptureFixture, order: list[str], is_said: bool
    ) -> None:
        places = world()[0][lambda one: one["longitude"].abs() < 80.0]
        pd.DataFrame(places[order].to_numpy(), columns=["LAT", "LON"]).to_csv(tmp_path / "g.csv", index=False)
        coordinates_of(make_run(f"evaluation.gallery={tmp_path / 'g.csv'}"))
        said = "of its places are over 1,000 km from every training photo; another region, or"
        assert (said in "".join(capsys.readouterr())) == is_said

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("everest", "'everest' is unknown; take train, lattice,"),
            ("/none/g.csv", "/none/g.csv: no such table"),
        ],
    )
    def test_an_unknown_name_or_file_is_named(self, make_run: Runs, name: str, words: str) -> None:
        with pytest.raises(BundleError, match=words):
            coordinates_of(make_run(f"evaluation.gallery={name}"))


@pytest.fixture(scope="module")
def model() -> GeoCLIP:
    torch.manual_seed(0)
    return GeoCLIP(6).eval()


class TestRetrieval:
    def test_the_place_with_the_largest_logit_is_found_whatever_the_block(self, model: GeoCLIP) -> None:
        coordinates = uniform_on_sphere(50, np.random.default_rng(1))
        photos = torch.randn(17, 6, generator=torch.Generator().manual_seed(2))
        embedded = gallery.embed(model, coordinates, torch.device("cpu"), block=7)
        with torch.inference_mode():
            places_at_once = model.embed_places(torch.from_numpy(coordinates).float())
            logits = model.logits(model.embed_photos(photos), places_at_once)
        assert torch.allclose(embedded, places_at_once, atol=1e-5)
        for block in (1, 5, 100):
            assert torch.equal(gallery.retrieve(model, photos, embedded, block)[1], logits.argmax(1))

    def test_over_several_blocks_of_a_gallery_and_of_equals_the_first(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gallery, "GALLERY_BLOCK", 256)
        generator = torch.Generator().manual_seed(1)
        photos = torch.randint(-1, 2, (60, 3), generator=generator).float()  # whole numbers: many tie
        places = torch.randint(-1, 2, (1_100, 3), generator=generator).float()
        identity = type("Identity", (), {"embed_photos": staticmethod(lambda features: features)})()
        cosine, rows = gallery.retrieve(identity, photos, places, block=7)
        expected = photos @ places.T
        assert torch.equal(cosine, expected.amax(1))
        assert rows.tolist() == expected.numpy().argmax(1).tolist()
