"""Statements about the maps of photos: what they show, any data are safe, they open without a network."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import folium
import numpy as np
import pandas as pd
import pytest
from browsing import Visit
from PIL import Image

from lib.data.sphere import destination, uniform_on_sphere
from lib.method.geodesy import distance_km
from lib.runs import Run
from lib.settings import load
from lib.show import maps, world
from lib.show.maps import prediction_map, save_map
from lib.show.style import named

STRATEGIES = ("infonce", "semivariogram", "decayed", "similarity")
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<!-- <script>",
           "{{ 7 * 7 }}{% raw %}{#"]  # fmt: skip
TRAINING = pd.DataFrame(uniform_on_sphere(60, np.random.default_rng(5)), columns=maps.TRUE)
TRAINING["id"] = TRAINING["path"] = [f"photo{k % 20}.jpg" for k in range(60)]
MARKS = "Object.values(map._layers).filter((layer) => layer.photo !== undefined).length"


def placed(true: np.ndarray, guess: np.ndarray) -> pd.DataFrame:
    """A row for each true place [N, 2] and where it was put."""
    columns = dict(zip(maps.NUMBERS, (*true.T, *guess.T, distance_km(true, guess)), strict=True))
    return pd.DataFrame(columns)


def table(count: int, strategies: tuple[str, ...] = STRATEGIES, seed: int = 0) -> pd.DataFrame:
    """Predictions of ``count`` photos with errors from metres to thousands of kilometres."""
    generator, rows = np.random.default_rng(seed), []
    true = uniform_on_sphere(count, generator, 72.0)
    names = {"id": [f"photo-{k:05d}" for k in range(count)]}
    names["path"] = [f"photo{k % 20}.jpg" for k in range(count)]
    for strategy in strategies:
        bearing = generator.uniform(0.0, 2.0 * np.pi, count)
        length = 10.0 ** generator.uniform(-1.0, 4.2, count)
        guess = destination(true, length * np.sin(bearing), length * np.cos(bearing))
        rows.append(placed(true, guess).assign(**names, split="test", strategy=strategy, seed=seed))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 smooth coloured photos."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(7)
    for k in range(20):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"photo{k}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    """Twelve photos, two strategies; the first are named by an attacker, one crosses the 180th meridian."""
    predictions = table(12, STRATEGIES[:2])
    for first in (0, 12):
        predictions.loc[first : first + 3, "id"] = HOSTILE
        predictions.loc[first + 4, ["id", "latitude", "longitude"]] = ["dateline", 10.0, 179.0]
        predictions.loc[first + 4, ["predicted_latitude", "predicted_longitude"]] = [12.0, -178.0]
        predictions.loc[first + 5, ["id", "path"]] = ["lost", HOSTILE[0]]
    return predictions


@pytest.fixture(scope="module")
def page(small: pd.DataFrame, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small map as a file."""
    drawn = prediction_map(small, TRAINING, photos, title="a <b>title</b> & more", chosen=STRATEGIES[0])
    return save_map(drawn, tmp_path_factory.mktemp("page") / "new" / "map.html")


def data_of(page: folium.Map | Path) -> dict:
    """What the page carries as data."""
    text = page.read_text("utf-8") if isinstance(page, Path) else page.get_root().render()
    return json.loads(re.search(r'type="application/json"[^>]*>(.*?)</script>', text, re.S)[1])


def resources(text: str) -> list[str]:
    """Addresses that a browser would fetch for markup and styles."""
    ways = (
        r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""",
        r"""url\(\s*["']?([^"')]*)""", r"""@import\s+["']([^"']+)""",
    )  # fmt: skip
    return [address for way in ways for address in re.findall(way, text)]


class TestPage:
    def test_two_thousand_photos_stay_below_ten_megabytes(self, photos: Path, tmp_path: Path) -> None:
        predictions = table(2_000)
        training = table(9_000, ("any",), seed=1)
        path = save_map(prediction_map(predictions, training, photos), tmp_path / "map.html")
        assert path.stat().st_size < 10e6
        data = data_of(path)
        assert len(data["thumbnails"]) == len(data["ids"]) == 2_000
        assert len(data["training"]["thumbnails"]) == maps.MOST_TRAINING
        assert [strategy["name"] for strategy in data["strategies"]] == list(STRATEGIES)

    def test_it_asks_no_network_and_is_the_same_file_twice(
        self, page: Path, small: pd.DataFrame, photos: Path
    ) -> None:
        assert all(address.startswith(("data:", "#")) for address in resources(page.read_text("utf-8")))
        one, other = (prediction_map(small, TRAINING, photos).get_root().render() for _ in range(2))
        assert one == other

    def test_thumbnails_are_small_jpegs_and_a_missing_photo_is_named_and_counted(self, page: Path) -> None:
        data = data_of(page)
        head, rest = data["thumbnails"][0]
        assert len(data["heads"]) == 1
        image = Image.open(io.BytesIO(base64.b64decode(data["heads"][head] + rest)))
        assert (image.format, max(image.size)) == ("JPEG", maps.THUMBNAIL_PX)
        assert len(data["thumbnails"]) == 12 and data["thumbnails"][5] is None
        assert data["unreadable"] == {"5": HOSTILE[0]}

    def test_the_smallest_seed_of_each_strategy_is_drawn(self, tmp_path: Path) -> None:
        both = pd.concat([table(5, ("infonce",), seed) for seed in (4, 2)])
        data = data_of(prediction_map(both.assign(latitude=1.0, longitude=2.0), TRAINING, tmp_path))
        assert data["strategies"][0]["seed"] == "2"

    def test_the_chosen_strategy_is_first_and_beside_each_photo_is_what_is_nearest_to_its_predicted_place(
        self, small: pd.DataFrame, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maps, "MOST_TRAINING", 7)
        data = data_of(prediction_map(small, TRAINING, photos, chosen=STRATEGIES[1]))
        first, second = data["strategies"]
        assert (first["name"], data["chosen"]) == (STRATEGIES[1], STRATEGIES[1])
        rows = small[small["strategy"] == STRATEGIES[1]]
        guess, places = rows[[*maps.PREDICTED]].to_numpy(), TRAINING[[*maps.TRUE]].to_numpy()
        nearest = places[distance_km(guess[:, None], places[None]).argmin(1)]
        there = np.reshape(data["training"]["places"], (-1, 2)) / 1e4
        known = [k for k, number in enumerate(first["near"]) if number is not None]
        assert np.allclose(there[[first["near"][k] for k in known]], nearest[known], atol=1e-4)
        assert len(there) == len(data["training"]["thumbnails"]) == 7 and None in second["near"]

    def test_of_too_many_photos_some_are_drawn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(maps, "MOST_PHOTOS", 4)
        predictions, run = table(10).drop(columns="path"), Run(load("smoke"), tmp_path / "run")
        manifest = predictions[["id"]].drop_duplicates().assign(path="nowhere.jpg", split="test")
        manifest = pd.concat([manifest, TRAINING.assign(split="train")])
        drawn = data_of(maps.split_map(predictions, manifest, run, "test"))
        assert len(drawn["ids"]) == 4 and drawn["title"] == "run: test, 4 of 10 photos"
        assert [path.name for path in run.map("predictions").parent.iterdir()] == ["predictions.html"]


@pytest.fixture
def desktop(browser: object, page: Path) -> Visit:
    """The small map on a screen of 1280 x 800, which must have stayed silent and offline to the end."""
    with Visit(browser, page) as visit:
        yield visit


class TestBrowser:
    def test_the_whole_world_fits_and_the_way_back_to_it_is_one_button(self, desktop: Visit) -> None:
        bounds = "map.getBounds().getWest(), map.getBounds().getEast()"
        west, east, home = desktop.map(f"[{bounds}, map.getZoom()]")
        assert west <= -180.0 + 1e-6
        assert east >= 180.0 - 1e-6
        desktop.find("dateline")
        desktop.tab.get_by_role("button", name="Whole world").click()
        desktop.until(f"Math.abs(map.getZoom() - {home}) < 1e-6")
        desktop.tab.locator(".leaflet-popup").wait_for(state="detached")

    def test_a_click_on_a_mark_opens_its_photo(self, desktop: Visit, small: pd.DataFrame) -> None:
        row = small.iloc[6]
        desktop.map(f"map.setView([{row.latitude}, {row.longitude}], 8, {{animate: false}}) && 0")
        box = desktop.tab.locator(".folium-map").bounding_box()
        desktop.tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        desktop.tab.wait_for_selector(".leaflet-popup img")
        desktop.until("document.querySelector('.leaflet-popup img').naturalWidth > 0")
        assert desktop.first_fact() == row.id
        near_km = distance_km(row[[*maps.PREDICTED]].to_numpy(float), TRAINING[[*maps.TRUE]].to_numpy()).min()
        assert f", {near_km:,.0f} km from it" in desktop.tab.locator(".leaflet-popup .near").text_content()

    def test_strategies_classes_and_overlays_switch(self, desktop: Visit, small: pd.DataFrame) -> None:
        lines = "Object.values(map._layers).filter((layer) => layer.options.opacity === 0.4).length"
        assert desktop.map(MARKS) == 24
        assert desktop.map(lines) == 0
        desktop.find("photo-00007")
        for strategy in STRATEGIES[:2]:
            desktop.tab.get_by_label(named(strategy)).check()
            assert f"{named(strategy)} (seed 0)" in desktop.tab.locator(".leaflet-popup").text_content()
        errors = small.loc[small["strategy"] == STRATEGIES[1], "error_km"]
        desktop.tab.get_by_label("beyond").uncheck()
        kept = int((errors <= world.ERROR_CLASSES[-2][1]).sum())
        assert desktop.map(MARKS) == 2 * kept
        desktop.tab.get_by_label("error lines").check()
        assert desktop.map(lines) == kept
        desktop.tab.get_by_label("predicted places").uncheck()
        assert desktop.map(MARKS) == kept
        shapes = "(all) => new Set(all.map((one) => one.style.clipPath)).size"
        shapes = desktop.tab.locator(".classes .mark").evaluate_all(shapes)
        assert shapes == len(world.ERROR_CLASSES)

    def test_the_line_of_a_photo_is_the_great_circle_and_cut_at_the_180th_meridian(
        self, desktop: Visit, small: pd.DataFrame
    ) -> None:
        line = "Object.values(map._layers).find((layer) => layer.options.weight === 2.5).getLatLngs()"
        for row in small[:12].itertuples():
            desktop.find(row.id)
            pieces = desktop.map(f"{line}.map((piece) => piece.map(({{ lat, lng }}) => [lat, lng]))")
            ends = np.reshape([getattr(row, name) for name in maps.NUMBERS[:4]], (2, 2))
            assert np.allclose([pieces[0][0], pieces[-1][-1]], ends, atol=1e-4)
            for piece in map(np.array, pieces):
                around_km = distance_km(ends[0], piece) + distance_km(piece, ends[1])
                assert np.allclose(around_km, distance_km(*ends), rtol=1e-3, atol=0.05)
                assert np.abs(np.diff(piece[:, 1])).max() <= 180.0
            assert row.id != "dateline" or (pieces[0][-1][1], pieces[1][0][1]) == (180, -180)

    def test_search_zooms_in_runs_no_hostile_text_and_says_when_there_is_no_such_photo(
        self, desktop: Visit, small: pd.DataFrame
    ) -> None:
        before, found = desktop.map("map.getZoom()"), small[6:12].nsmallest(1, "error_km")["id"].iloc[0]
        desktop.find(found[-5:])
        assert desktop.map("map.getZoom()") > before
        assert found in desktop.tab.locator(".found").text_content()
        for hostile in HOSTILE:
            desktop.find(hostile)
            assert desktop.first_fact() == hostile
        desktop.find("lost")
        assert HOSTILE[0] in desktop.tab.locator(".leaflet-popup .missing").text_content()
        desktop.find("nothing of this name")
        assert desktop.tab.locator(".found").text_content() == "No photo has this id."

    def test_on_a_phone_the_map_is_above_its_controls(self, browser: object, page: Path) -> None:
        with Visit(browser, page, 390, 844) as visit:
            above, below = (visit.tab.locator(one).bounding_box() for one in (".folium-map", ".panel"))
            assert above["height"] > 300 and above["y"] + above["height"] <= below["y"] + 1
            visit.tab.locator(".search input").scroll_into_view_if_needed()
            assert visit.tab.locator(".search input").is_visible()
            assert visit.width() <= 390
            visit.tab.locator(".panel summary").click()
            assert not visit.tab.locator(".search input").is_visible()
            visit.until("document.querySelector('.folium-map').clientHeight > 750")

    def test_a_keyboard_walks_from_the_largest_error_on(self, desktop: Visit, small: pd.DataFrame) -> None:
        errors = small[small["strategy"] == STRATEGIES[0]].sort_values("error_km", ascending=False)
        for button, number in ((".next", 0), (".next", 1), (".next", 2), (".previous", 1)):
            desktop.tab.locator(button).focus()
            desktop.tab.keyboard.press("Enter")
            assert desktop.first_fact() == errors["id"].iloc[number]

    @pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
    def test_ten_photos_are_guessed_by_mouse_and_keyboard(
        self, browser: object, page: Path, small: pd.DataFrame, width: int, height: int
    ) -> None:
        rows, photos, you, model = small[:12].set_index("id"), [], 0, 0
        with Visit(browser, page, width, height) as visit:
            photo, said = visit.tab.locator(".window img"), visit.tab.locator(".answer")
            press = visit.tab.keyboard.press
            ring = "Object.values(map._layers).find((one) => one.options.icon).getLatLng()"
            visit.tab.locator(".play").click()
            for turn in range(10):
                visit.tab.wait_for_selector(f".answer:has-text('Photo {turn + 1} of 10')")
                row = rows.loc[photo.get_attribute("alt")[6:]]
                photos.append(row.name)
                assert visit.map(MARKS) == 0
                if turn == 0:
                    visit.tab.locator(".folium-map").click(position={"x": width / 4, "y": 200})
                    visit.tab.locator(".go").click()
                else:
                    visit.tab.locator(".folium-map").focus()  # where arrows would move the map
                    press("ArrowLeft")
                    press("Shift+ArrowUp")
                    at = f"map.latLngToContainerPoint({ring})"
                    moved = visit.map(f"{at}.subtract(map.getSize().divideBy(2))")
                    assert (round(moved["x"]), round(moved["y"])) == (-16, -2)
                    press("Enter")
                pin = visit.map(ring)
                off_km = distance_km(np.array([pin["lat"], pin["lng"]]), row[[*maps.TRUE]].to_numpy(float))
                points = [round(5000 * np.exp(-km / 1492.7)) for km in (off_km, row["error_km"])]
                you, model = you + points[0], model + points[1]
                assert all(f": {one:,} points" in said.inner_text() for one in points)
                assert f"{you:,} : {model:,}" in said.inner_text()
                if turn < 9:
                    press("Enter")
            assert len(set(photos)) == 10 and "the end" in said.inner_text() and visit.width() <= width
            word = visit.map("location.hash")
            visit.tab.locator(".leave").click()
            visit.until("!document.body.classList.contains('playing')")
            assert visit.map(MARKS) == 24
            visit.map(f"location.hash = '{word}'")
            visit.tab.wait_for_selector(".answer:has-text('Photo 1 of 10')")
            assert photo.get_attribute("alt")[6:] == photos[0]
