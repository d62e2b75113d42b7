"""Statements about the Blue Marble places and windows. Most windows are cut from mosaics whose colour tells
where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.data import blue_marble, datasets, places, sphere
from lib.data.blue_marble import build, cut_windows, draw_places, wrapped
from lib.method import geodesy
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import BlueMarble, load

SETTINGS = BlueMarble(train=300, validation=40, test=50, test_blocked=60, window_px=32)


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    return draw_places(SETTINGS)


class TestPlaces:
    def test_splits_have_the_sizes_that_were_asked_for(self, drawn: pd.DataFrame) -> None:
        assert drawn["split"].value_counts().to_dict() == {
            "train": 300,
            "validation": 40,
            "test": 50,
            "test_blocked": 60,
        }
        assert drawn["id"].is_unique

    def test_they_lie_on_land_within_the_latitudes(self, drawn: pd.DataFrame) -> None:
        coordinates = drawn[["latitude", "longitude"]].to_numpy()
        assert places.is_land(coordinates).all()
        assert np.abs(coordinates[:, 0]).max() < SETTINGS.max_abs_latitude_deg
        assert np.abs(coordinates[:, 0]).max() > 55.0

    def test_held_out_cells_hold_no_place_of_another_split(self, drawn: pd.DataFrame) -> None:
        blocked = drawn["split"] == "test_blocked"
        assert not set(drawn["cell"][blocked]) & set(drawn["cell"][~blocked])
        assert drawn["cell"][blocked].nunique() > 5
        cells = np.floor(
            (drawn[["latitude", "longitude"]].to_numpy() + [90.0, 180.0]) / SETTINGS.blocked_cell_deg
        )
        corners = [set(map(tuple, cells[part.to_numpy()])) for part in (blocked, ~blocked)]
        assert not corners[0] & corners[1]

    def test_the_seed_alone_decides(self, drawn: pd.DataFrame) -> None:
        pd.testing.assert_frame_equal(draw_places(SETTINGS), drawn)
        other = draw_places(SETTINGS.model_copy(update={"seed": 1}))
        assert not np.isin(other["latitude"], drawn["latitude"]).any()

    def test_land_of_equal_area_holds_equally_many(self) -> None:
        many = blue_marble._draw(SETTINGS, np.random.default_rng(0), 60_000)
        grid = sphere.lattice(100.0)
        land = grid[places.is_land(grid) & (np.abs(grid[:, 0]) < 72.0)]
        for low, high in ((-35.0, 0.0), (0.0, 30.0), (50.0, 72.0)):
            share = [((part[:, 0] >= low) & (part[:, 0] < high)).mean() for part in (many, land)]
            assert share[0] == pytest.approx(share[1], rel=0.06)

    def test_small_cells_are_full_and_far_from_all_other_places(self) -> None:
        settings = SETTINGS.model_copy(
            update={"blocked_cell_km": 300.0, "blocked_photos": 20, "buffer_km": 362.0}
            | {"validation_blocked": 40, "test_blocked": 100}
        )
        drawn = draw_places(settings)
        held_out = drawn["split"].str.endswith("_blocked")
        assert drawn["split"].value_counts()[["validation_blocked", "test_blocked"]].tolist() == [40, 100]
        per_cell = drawn[held_out].groupby(["split", "cell"]).size()
        assert (per_cell == 20).all() and per_cell.index.get_level_values("cell").is_unique
        there = drawn[["latitude", "longitude"]].to_numpy()
        assert places.is_land(there).all()
        apart_km = geodesy.distance_km(there[held_out][:, None], there[~held_out][None])
        assert 362.0 < apart_km.min() < 600.0
        for _, cell in drawn[held_out].groupby("cell"):
            inside = cell[["latitude", "longitude"]].to_numpy()
            assert geodesy.distance_km(inside[:, None], inside[None]).max() < 1.6 * 300.0

    def test_cells_that_cannot_be_had_are_a_sentence(self) -> None:
        asked = SETTINGS.model_copy(update={"blocked_cell_km": 300.0, "test_blocked": 1_000_000})
        with pytest.raises(BundleError, match="too few for the held-out places"):
            draw_places(asked)
        with pytest.raises(ValueError, match="need blocked_cell_km"):
            BlueMarble(buffer_km=100.0)

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


def coloured(width: int = 1_440) -> torch.Tensor:
    """A mosaic [3, H, W] whose colour is the unit vector of its place: smooth everywhere, poles and 180th
    meridian included."""
    latitude = 90.0 - (torch.arange(width // 2, dtype=torch.float64) + 0.5) / (width // 2) * 180.0
    longitude = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 360.0 - 180.0
    grid = torch.stack(torch.meshgrid(latitude, longitude, indexing="ij"), -1)
    return ((geodesy.unit_vectors(grid) + 1.0) * 127.5).permute(2, 0, 1).float()


def place_of(colour: np.ndarray) -> np.ndarray:
    return sphere.coordinates_of(colour / 127.5 - 1.0)


CENTRES = [
    (0.0, 0.0),
    (48.0, 11.0),
    (-33.0, 151.0),
    (70.0, 25.0),
    (-71.0, -60.0),
    (65.0, 179.9),
    (-17.0, -179.95),
    (71.0, -180.0),
]


class TestWindows:
    @pytest.mark.parametrize("centre", CENTRES)
    def test_every_pixel_shows_its_own_place(self, centre: tuple[float, float]) -> None:
        side, px = 1_000.0, 20
        (window,) = cut_windows(
            wrapped(coloured()), torch.tensor([centre], dtype=torch.float64), side, px
        ).numpy()
        offset = (np.arange(px) + 0.5) / px * side - side / 2.0
        found = place_of(window.astype(np.float64))
        for row in (0, 7, 19):
            for column in (0, 11, 19):
                bearing, length = (
                    np.arctan2(offset[column], -offset[row]),
                    np.hypot(offset[column], offset[row]),
                )
                true = sphere.destination(
                    np.array(centre), length * np.sin(bearing), length * np.cos(bearing)
                )
                # a step of colour is 1/127.5 rad, 50 km, so half a step in three channels is within 45 km
                assert geodesy.distance_km(found[row, column], true) < 45.0

    @pytest.mark.parametrize("centre", CENTRES)
    def test_it_is_continuous(self, centre: tuple[float, float]) -> None:
        (window,) = (
            cut_windows(wrapped(coloured()), torch.tensor([centre], dtype=torch.float64), 1_000.0, 64)
            .int()
            .numpy()
        )
        assert max(np.abs(np.diff(window, axis=axis)).max() for axis in (0, 1)) <= 2

    def test_a_window_is_as_wide_at_70_degrees_as_at_the_equator(self) -> None:
        centres = torch.tensor([[0.0, 20.0], [70.0, 20.0]], dtype=torch.float64)
        windows = cut_windows(wrapped(coloured()), centres, 2_000.0, 32).numpy().astype(np.float64)
        for window in windows:
            found = place_of(window)
            width = geodesy.distance_km(found[16, 0], found[16, 31])
            assert width == pytest.approx(2_000.0 * 31 / 32, abs=90.0)


class TestBuild:
    def test_photos_are_written_once_and_show_land(self, tmp_path: Path) -> None:
        settings = BlueMarble(train=6, validation=1, test=1, test_blocked=2, window_px=32)
        frame = build(settings, tmp_path).photos
        files = [tmp_path / path for path in frame["path"]]
        with Image.open(files[0]) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
        assert len(list(tmp_path.rglob("*.jpg"))) == len(files) == 10
        times = [path.stat().st_mtime_ns for path in files]
        files[3].unlink()
        pd.testing.assert_frame_equal(build(settings, tmp_path).photos, frame)
        assert [path.stat().st_mtime_ns == time for path, time in zip(files, times, strict=True)] == [
            number != 3 for number in range(10)
        ]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
            lambda content: content[: len(content) // 2],
            lambda content: b"",
        ],
    )
    def test_a_damaged_window_is_named_and_cut_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, damage: Callable[[bytes], bytes]
    ) -> None:
        run = Run(
            load(
                "smoke",
                [
                    f"dataset.root={tmp_path / 'photos'}",
                    "dataset.train=6",
                    "dataset.validation=1",
                    "dataset.test=1",
                    "dataset.test_blocked=2",
                    "dataset.window_px=32",
                ],
            ),
            tmp_path / "run",
        )
        window = tmp_path / "photos" / datasets.prepare(run)["path"][3]
        whole, before = window.read_bytes(), run.manifest.read_bytes()
        window.write_bytes(damage(whole))
        capsys.readouterr()
        datasets.prepare(run)
        assert f"{window} is damaged" in capsys.readouterr().out
        assert window.read_bytes() == whole and run.manifest.read_bytes() == before
        datasets.prepare(run)
        assert "damaged" not in capsys.readouterr().out

    def test_noted_checksums_are_those_of_the_windows(self, tmp_path: Path) -> None:
        settings = BlueMarble(train=6, validation=1, test=1, test_blocked=2, window_px=32)
        paths = build(settings, tmp_path).photos["path"].tolist()
        sums = (tmp_path / blue_marble.window_folder(settings) / "checksums.txt").read_text().splitlines()
        assert sums == [
            f"{hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()}  {path}" for path in paths
        ]
        with (tmp_path / blue_marble.window_folder(settings) / "checksums.txt").open("a") as file:
            file.write("half a li")
        assert blue_marble.not_whole([*paths, "gone.jpg"], tmp_path, settings) == ["gone.jpg"]
