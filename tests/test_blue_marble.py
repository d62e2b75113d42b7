"""Blue Marble's places and windows. Most windows are cut from a mosaic whose colour tells where it is."""

from __future__ import annotations

import io
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lib.data import blue_marble, datasets, places, sphere
from lib.data.blue_marble import build, cut_windows, draw_places, window_archive
from lib.data.photos import open_photo
from lib.method import geodesy
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import BlueMarble, load

SETTINGS = BlueMarble(
    train=300, validation=40, test=50, test_blocked=100, validation_blocked=40, blocked_photos=20,
    window_px=32,
)  # fmt: skip
TINY = BlueMarble(train=6, validation=1, test=1, test_blocked=2, blocked_photos=2, window_px=32)


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    return draw_places(SETTINGS)


class TestPlaces:
    def test_splits_have_the_sizes_asked_for_and_lie_on_land_within_the_latitudes(
        self, drawn: pd.DataFrame
    ) -> None:
        sizes = {"train": 300, "test_blocked": 100, "test": 50, "validation": 40, "validation_blocked": 40}
        assert drawn["split"].value_counts().to_dict() == sizes and drawn["id"].is_unique
        coordinates = drawn[["latitude", "longitude"]].to_numpy()
        assert places.is_land(coordinates).all()
        assert 55.0 < np.abs(coordinates[:, 0]).max() < SETTINGS.max_abs_latitude_deg

    def test_held_out_cells_are_full_and_far_from_all_other_places(self, drawn: pd.DataFrame) -> None:
        held_out = drawn["split"].str.endswith("_blocked")
        per_cell = drawn[held_out].groupby(["split", "cell"]).size()
        assert (per_cell == 20).all() and per_cell.index.get_level_values("cell").is_unique
        there = drawn[["latitude", "longitude"]].to_numpy()
        apart_km = geodesy.distance_km(there[held_out][:, None], there[~held_out][None])
        assert 362.0 < apart_km.min() < 600.0
        for _, cell in drawn[held_out].groupby("cell"):
            inside = cell[["latitude", "longitude"]].to_numpy()
            assert geodesy.distance_km(inside[:, None], inside[None]).max() < 1.6 * 300.0

    def test_the_seed_alone_decides(self, drawn: pd.DataFrame) -> None:
        pd.testing.assert_frame_equal(draw_places(SETTINGS), drawn)
        other = draw_places(SETTINGS.model_copy(update={"seed": 1}))
        assert not np.isin(other["latitude"], drawn["latitude"]).any()

    def test_land_of_equal_area_holds_equally_many(self) -> None:
        many = blue_marble._on_land(SETTINGS, np.random.default_rng(0), 60_000)
        grid = sphere.lattice(100.0)
        land = grid[places.is_land(grid) & (np.abs(grid[:, 0]) < 72.0)]
        for low, high in ((-35.0, 0.0), (0.0, 30.0), (50.0, 72.0)):
            share = [((part[:, 0] >= low) & (part[:, 0] < high)).mean() for part in (many, land)]
            assert share[0] == pytest.approx(share[1], rel=0.06)

    @pytest.mark.parametrize(
        ("wish", "sentence"),
        [({"test_blocked": 1_000_000}, "too few for the held-out"), ({"buffer_km": 20_000}, "leave no land")],
    )
    def test_what_cannot_be_had_is_a_sentence(self, wish: dict[str, int], sentence: str) -> None:
        with pytest.raises(BundleError, match=sentence):
            draw_places(SETTINGS.model_copy(update=wish))

    @pytest.mark.parametrize("imagery", places.MOSAICS)
    def test_both_mosaics_show_the_sea_where_it_is(self, imagery: str) -> None:
        mosaic = np.asarray(places.mosaic(imagery)).astype(float)
        height, width = mosaic.shape[:2]
        assert width == 2 * height
        atlantic, sahara = (
            mosaic[int((90 - latitude) / 180 * height), int((longitude + 180) / 360 * width)]
            for latitude, longitude in ((35.0, -45.0), (23.0, 10.0))
        )
        assert atlantic[2] > atlantic[0] and sahara[0] > sahara[2]


class TestTowns:
    @pytest.mark.parametrize(
        ("place", "named"),
        [
            ((64.50, -165.41), ("Nome", "US", "North America")),
            ((-22.56, 17.08), ("Windhoek", "NA", "Africa")),  # a country's code, not a missing value
            ((55.03, 82.92), ("Novosibirsk", "RU", "Asia")),  # east of the Ural
            ((55.76, 37.62), ("Moscow", "RU", "Europe")),
            ((64.73, 177.51), ("Anadyr", "RU", "Asia")),
            ((66.2, -169.9), (None, "RU", "Asia")),  # beyond the 180th meridian
            ((-75.0, 0.0), ("", "AQ", "Antarctica")),
        ],
    )
    def test_a_place_has_town_country_and_continent(self, place: tuple, named: tuple) -> None:
        (found,) = places.describe(np.array([place])).itertuples(index=False)
        assert found[1:] == named[1:]
        assert named[0] in (None, found.town)

    def test_the_nearest_is_the_nearest_on_the_sphere(self) -> None:
        """At 70 degrees a degree of longitude is a third of one of latitude."""
        somewhere = sphere.uniform_on_sphere(30, np.random.default_rng(0), 72.0)
        tree, towns = places._towns()
        towns_deg = sphere.coordinates_of(tree.data)
        for place, found in zip(somewhere, places.describe(somewhere)["town"], strict=True):
            if place[0] > places.ANTARCTIC_LATITUDE_DEG:
                assert found == towns["town"][int(geodesy.distance_km(place, towns_deg).argmin())]

    def test_every_country_has_a_name_and_no_place_has_no_rows(self) -> None:
        assert set(places._towns()[1]["country"]) <= set(places.country_names())
        assert places.country_names()["DE"] == "Germany"
        assert places.describe(np.empty((0, 2))).shape == (0, 3)


def coloured(width: int = 1_440) -> torch.Tensor:
    """A mosaic [3, H, W + 2] whose colour is the unit vector of its place: smooth at the poles and the 180th
    meridian, too."""
    latitude = 90.0 - (torch.arange(width // 2, dtype=torch.float64) + 0.5) / (width // 2) * 180.0
    longitude = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 360.0 - 180.0
    grid = torch.stack(torch.meshgrid(latitude, longitude, indexing="ij"), -1)
    mosaic = ((geodesy.unit_vectors(grid) + 1.0) * 127.5).permute(2, 0, 1).float()
    return F.pad(mosaic, (1, 1), mode="circular")


def window(centre: tuple[float, float], side_km: float, px: int) -> np.ndarray:
    """The window of the coloured mosaic around ``centre``, [px, px, 3]."""
    centres = torch.tensor([centre], dtype=torch.float64)
    return cut_windows(coloured(), centres, side_km, px)[0].double().numpy()


def place_of(colour: np.ndarray) -> np.ndarray:
    return sphere.coordinates_of(colour / 127.5 - 1.0)


CENTRES = [(0.0, 0.0), (48.0, 11.0), (-33.0, 151.0), (70.0, 25.0), (-71.0, -60.0), (65.0, 179.9),
           (-17.0, -179.95), (71.0, -180.0)]  # fmt: skip


class TestWindows:
    @pytest.mark.parametrize("centre", CENTRES)
    def test_every_pixel_shows_its_own_place_and_there_is_no_seam(self, centre: tuple[float, float]) -> None:
        side, px = 1_000.0, 20
        found, offset = place_of(window(centre, side, px)), (np.arange(px) + 0.5) / px * side - side / 2.0
        for row in (0, 7, 19):
            for column in (0, 11, 19):
                true = sphere.destination(np.array(centre), offset[column], -offset[row])
                # a step of colour is 1/127.5 rad, 50 km, so half a step in three channels is within 45 km
                assert geodesy.distance_km(found[row, column], true) < 45.0
        fine = window(centre, side, 64)
        assert max(np.abs(np.diff(fine, axis=axis)).max() for axis in (0, 1)) <= 2

    def test_jpegs_of_the_packages_mosaic_have_no_seam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mosaic = coloured()[..., 1:-1].round().to(torch.uint8).permute(1, 2, 0).numpy()
        monkeypatch.setattr(places, "mosaic", lambda imagery: Image.fromarray(mosaic))
        settings = TINY.model_copy(update={"window_km": 10.0})
        (content,) = blue_marble.jpegs(np.array([(0.0, 180.0)]), settings)
        assert np.abs(np.diff(np.asarray(Image.open(io.BytesIO(content))).astype(int), axis=1)).max() <= 3


class TestArchive:
    def test_it_holds_the_photos_is_written_once_and_always_with_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        photos, archive = build(TINY, tmp_path).photos, window_archive(TINY, tmp_path)
        assert photos["path"][3] == f"{archive.name}/000/bm_000003.jpg"
        image = open_photo(tmp_path, photos["path"][3])
        assert (image.size, image.mode) == ((32, 32), "RGB")
        with zipfile.ZipFile(archive) as file:
            assert [f"{archive.name}/{name}" for name in file.namelist()] == photos["path"].tolist()
            assert {one.compress_type for one in file.infolist()} == {zipfile.ZIP_STORED}
        written = archive.stat()
        pd.testing.assert_frame_equal(build(TINY, tmp_path).photos, photos)
        assert archive.stat() == written
        monkeypatch.setattr("time.time", lambda: 1e9)
        build(TINY, tmp_path / "b")
        assert window_archive(TINY, tmp_path / "b").read_bytes() == archive.read_bytes()

    def test_other_settings_and_other_code_have_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digests: dict[str, str] = {}
        monkeypatch.setattr(blue_marble, "digest", lambda name: digests.get(name, ""))
        own = window_archive(TINY, tmp_path)
        assert window_archive(TINY.model_copy(update={"root": Path("elsewhere")}), tmp_path) == own
        assert window_archive(TINY.model_copy(update={"seed": 1}), tmp_path) != own
        for name in ("draw_places", "jpegs"):
            digests = {f"lib.data.blue_marble:{name}": "other"}
            assert window_archive(TINY, tmp_path) != own

    @pytest.mark.parametrize(
        "damage",
        [lambda content: content[:500] + bytes([content[500] ^ 4]) + content[501:],
         lambda content: content[: len(content) // 2], lambda content: b"", None],
    )  # fmt: skip
    def test_one_that_is_damaged_or_gone_is_named_and_written_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, damage: Callable[[bytes], bytes] | None
    ) -> None:
        own = TINY.model_copy(update={"root": tmp_path / "photos"})
        run = Run(load("smoke").model_copy(update={"dataset": own}), tmp_path / "run")
        datasets.prepare(run)
        archive, before = window_archive(run.settings.dataset, tmp_path / "photos"), run.manifest.read_bytes()
        whole = archive.read_bytes()
        archive.unlink() if damage is None else archive.write_bytes(damage(whole))
        capsys.readouterr()
        datasets.prepare(run)
        assert f"{archive} is {'damaged' if damage else 'gone'}" in capsys.readouterr().out
        assert archive.read_bytes() == whole and run.manifest.read_bytes() == before
        datasets.prepare(run)
        assert "again" not in capsys.readouterr().out

    def test_two_at_once_write_it_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written, write = [], blue_marble._write
        monkeypatch.setattr(blue_marble, "_write", lambda *given: (written.append(given[0]), write(*given)))
        together = [threading.Thread(target=build, args=(TINY, tmp_path)) for _ in range(3)]
        for one in together:
            one.start()
        for one in together:
            one.join()
        assert len(written) == 1 and blue_marble._is_whole(written[0], zipfile.ZipFile(written[0]).namelist())
