"""Statements about the maps: what they show, that they are safe with any data, and that they open without a
network."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import folium
import numpy as np
import pandas as pd
import pyproj
import pytest
from browsing import Visit
from PIL import Image

from lib.data.sphere import destination, uniform_on_sphere
from lib.evaluate.regions import error_field
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km
from lib.show import maps
from lib.show.maps import ERROR_CLASSES, great_circle, prediction_map, save_map

STRATEGIES = ("infonce", "semivariogram", "decayed", "similarity")
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!-- <script>",
    "{{ 7 * 7 }}{% raw %}{#",
]


def photo_folder(folder: Path, count: int, px: int = 128) -> list[str]:
    """Paths of ``count`` smooth coloured photos below ``folder``."""
    generator = np.random.default_rng(7)
    for k in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((px, px), Image.Resampling.BICUBIC).save(folder / f"photo{k}.jpg", quality=90)
    return [f"photo{k}.jpg" for k in range(count)]


def table(
    count: int, paths: list[str], strategies: tuple[str, ...] = STRATEGIES, seed: int = 0
) -> pd.DataFrame:
    """Predictions of ``count`` photos with errors from metres to thousands of kilometres."""
    generator = np.random.default_rng(seed)
    true = uniform_on_sphere(count, generator, 72.0)
    rows = []
    for strategy in strategies:
        bearing, length = (
            generator.uniform(0.0, 2.0 * np.pi, count),
            10.0 ** generator.uniform(-1.0, 4.2, count),
        )
        guess = destination(true, length * np.sin(bearing), length * np.cos(bearing))
        columns = {
            "id": [f"photo-{k:05d}" for k in range(count)],
            "split": "test",
            "strategy": strategy,
            "seed": seed,
            "path": [paths[k % len(paths)] for k in range(count)],
            "error_km": distance_km(true, guess),
        }
        rows.append(
            pd.DataFrame(columns).assign(
                latitude=true[:, 0],
                longitude=true[:, 1],
                predicted_latitude=guess[:, 0],
                predicted_longitude=guess[:, 1],
            )
        )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with 20 photos, and their paths in it."""
    folder = tmp_path_factory.mktemp("photos")
    return folder, photo_folder(folder, 20)


@pytest.fixture(scope="module")
def small(photos: tuple[Path, list[str]]) -> pd.DataFrame:
    """Twelve photos, two strategies; the first ones are named by an attacker, one crosses the 180th
    meridian."""
    predictions = table(12, photos[1], STRATEGIES[:2])
    for strategy in STRATEGIES[:2]:
        rows = predictions.index[predictions["strategy"] == strategy]
        predictions.loc[rows[: len(HOSTILE)], "id"] = HOSTILE
        predictions.loc[rows[4], ["id", "latitude", "longitude"]] = ["dateline", 10.0, 179.0]
        predictions.loc[rows[4], ["predicted_latitude", "predicted_longitude"]] = [12.0, -178.0]
        predictions.loc[rows[5], ["id", "path"]] = ["lost", HOSTILE[0]]
    return predictions


@pytest.fixture(scope="module")
def page(
    small: pd.DataFrame, photos: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small map as a file."""
    path = tmp_path_factory.mktemp("page") / "new" / "map.html"
    return save_map(
        prediction_map(small, photos[0], field=error_field(small, side=40), title="a <b>title</b> & more"),
        path,
    )


def embedded(path: Path) -> dict:
    """What the page carries as data."""
    return json.loads(
        re.search(r'type="application/json"[^>]*>(.*?)</script>', path.read_text("utf-8"), re.S)[1]
    )


def resources(text: str) -> list[str]:
    """Addresses that a browser would fetch for markup and styles."""
    found = re.findall(
        r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", text
    )
    return (
        found
        + re.findall(r"""url\(\s*["']?([^"')]*)""", text)
        + re.findall(r"""@import\s+["']([^"']+)""", text)
    )


def test_a_map_of_the_same_photos_is_the_same_file(
    small: pd.DataFrame, photos: tuple[Path, list[str]], tmp_path: Path
) -> None:
    one, other = (
        save_map(prediction_map(small, photos[0]), tmp_path / name).read_bytes()
        for name in ("a.html", "b.html")
    )
    assert one == other


class TestGreatCircle:
    def test_across_the_180th_meridian_it_is_two_pieces_that_meet_at_it(self) -> None:
        west, east = great_circle(np.array([10.0, 179.0]), np.array([12.0, -178.0]))
        assert west[0].tolist() == [10.0, 179.0]
        assert east[-1].tolist() == [12.0, -178.0]
        assert west[-1, 1] == 180.0
        assert east[0, 1] == -180.0
        assert west[-1, 0] == east[0, 0] == pytest.approx(10.67, abs=0.05)

    def test_no_step_jumps_and_none_leaves_the_world(self) -> None:
        generator = np.random.default_rng(1)
        for start, end in zip(
            uniform_on_sphere(300, generator), uniform_on_sphere(300, generator), strict=True
        ):
            pieces = great_circle(start, end)
            for piece in pieces:
                assert len(piece) >= 2
                assert np.abs(piece[:, 1]).max() <= 180.0 + 1e-9
                assert np.abs(np.diff(piece[:, 1])).max() <= 180.0
            length = sum(distance_km(piece[:-1], piece[1:]).sum() for piece in pieces)
            assert length == pytest.approx(distance_km(start, end), rel=1e-9)

    def test_intermediate_points_are_those_of_pyproj_on_the_same_sphere(self) -> None:
        sphere = pyproj.Geod(a=EARTH_RADIUS_KM * 1000.0, f=0.0)
        for start, end in (
            ((48.0, 11.0), (-33.9, 151.2)),
            ((60.0, -150.0), (65.0, -20.0)),
            ((1.0, 2.0), (40.0, 3.0)),
        ):
            (ours,) = great_circle(np.array(start), np.array(end))
            theirs = sphere.npts(start[1], start[0], end[1], end[0], len(ours) - 2)
            assert np.allclose(ours[1:-1, ::-1], theirs, atol=1e-7)

    @pytest.mark.parametrize("end", [(20.0, 30.0), (-20.0, -150.0)], ids=["same place", "antipode"])
    def test_between_one_place_and_between_antipodes_it_is_finite(self, end: tuple[float, float]) -> None:
        pieces = great_circle(np.array([20.0, 30.0]), np.array(end))
        assert np.isfinite(np.vstack(pieces)).all()
        length = sum(distance_km(piece[:-1], piece[1:]).sum() for piece in pieces)
        assert length == pytest.approx(distance_km((20.0, 30.0), end), rel=1e-3, abs=1e-6)


class TestPage:
    def test_two_thousand_photos_of_four_strategies_stay_below_ten_megabytes(
        self, photos: tuple[Path, list[str]], tmp_path: Path
    ) -> None:
        path = save_map(
            prediction_map(predictions := table(2_000, photos[1]), photos[0], field=error_field(predictions)),
            tmp_path / "map.html",
        )
        assert path.stat().st_size < 10e6
        data = embedded(path)
        assert len(data["thumbnails"]) == len(data["ids"]) == 2_000
        assert [strategy["name"] for strategy in data["strategies"]] == list(STRATEGIES)

    def test_it_refers_to_nothing_on_a_network(self, page: Path) -> None:
        assert all(address.startswith(("data:", "#")) for address in resources(page.read_text("utf-8")))
        assert "tile.openstreetmap.org" not in page.read_text("utf-8")

    def test_web_tiles_are_the_only_host_it_may_ask(self, small: pd.DataFrame) -> None:
        text = prediction_map(small, None, web_tiles=True).get_root().render()
        policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', text)[1]
        assert re.findall(r"https?://[^\s;]+", policy) == ["https://tile.openstreetmap.org"]
        assert all(address.startswith(("data:", "#")) for address in resources(text))

    def test_hostile_ids_and_titles_stay_text(self, page: Path) -> None:
        text = page.read_text("utf-8")
        assert not any(id_ in text for id_ in HOSTILE[:3])
        assert "<title>a &lt;b&gt;title&lt;/b&gt; &amp; more</title>" in text
        assert embedded(page)["ids"][: len(HOSTILE)] == HOSTILE

    def test_thumbnails_are_small_jpegs_kept_once_a_photo(self, page: Path) -> None:
        data = embedded(page)
        image = Image.open(io.BytesIO(base64.b64decode(data["thumbnails"][0])))
        assert (image.format, max(image.size)) == ("JPEG", maps.THUMBNAIL_PX)
        assert len(data["thumbnails"]) == 12

    def test_a_missing_photo_is_named_and_counted(self, page: Path) -> None:
        data = embedded(page)
        assert data["thumbnails"][5] == ""
        assert data["unreadable"] == {"5": HOSTILE[0]}
        assert "1 of 12 photos have no thumbnail: file missing or unreadable." in data["notes"]

    def test_without_paths_or_folder_it_says_why_there_are_no_thumbnails(
        self, small: pd.DataFrame, tmp_path: Path
    ) -> None:
        for predictions, root in ((small, None), (small.drop(columns="path"), tmp_path)):
            data = embedded(save_map(prediction_map(predictions, root), tmp_path / "map.html"))
            assert "No thumbnails: no image folder or no paths were given." in data["notes"]

    def test_the_smallest_seed_of_each_strategy_is_drawn_and_said(self, tmp_path: Path) -> None:
        both = pd.concat([table(5, ["a"], ("infonce",), seed) for seed in (4, 2)]).assign(
            latitude=1.0, longitude=2.0
        )
        data = embedded(save_map(prediction_map(both, None), tmp_path / "map.html"))
        assert data["strategies"][0]["seed"] == "2"
        assert "Several seeds were trained; the smallest of each strategy is drawn." in data["notes"]

    def test_of_too_many_photos_an_even_sample_is_drawn_and_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maps, "MAX_PHOTOS", 4)
        data = embedded(save_map(prediction_map(table(10, ["a"]), None), tmp_path / "map.html"))
        assert data["ids"] == ["photo-00000", "photo-00003", "photo-00006", "photo-00009"]
        assert data["notes"][0] == "4 of 10 photos, evenly spaced in the table, split test."

    def test_a_bound_belongs_to_the_class_below_it(self, tmp_path: Path) -> None:
        predictions = table(10, ["a"], ("infonce",))
        bounds = [bound.upper_km for bound in ERROR_CLASSES[:-1]]
        predictions["error_km"] = [0.0, *bounds, *(bound + 0.01 for bound in bounds), 20_000.0]
        data = embedded(save_map(prediction_map(predictions, None), tmp_path / "map.html"))
        assert data["strategies"][0]["error_class"] == [0, 0, 1, 2, 3, 1, 2, 3, 4, 4]

    def test_a_strategy_without_a_photo_leaves_it_out(self, tmp_path: Path) -> None:
        data = embedded(save_map(prediction_map(table(4, ["a"]).iloc[:-1], None), tmp_path / "map.html"))
        assert data["strategies"][3]["error_class"][3] is None

    def test_a_notebook_can_show_it(self, small: pd.DataFrame) -> None:
        world = prediction_map(small, None)
        assert isinstance(world, folium.Map)
        assert world._repr_html_().count("<iframe") == 1

    def test_a_failed_save_leaves_the_old_page_and_no_rest(
        self, small: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "map.html").write_text("old")
        world = prediction_map(small, None)
        monkeypatch.setattr(maps, "EMBEDDED_RESOURCES", {})
        with pytest.raises(KeyError):
            save_map(world, tmp_path / "map.html")
        assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
        assert (tmp_path / "map.html").read_text() == "old"


class TestErrors:
    def test_no_rows(self, small: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="have no rows"):
            prediction_map(small.iloc[:0], None)

    @pytest.mark.parametrize("column", maps.COLUMNS)
    def test_a_missing_column_is_named(self, small: pd.DataFrame, column: str) -> None:
        with pytest.raises(ValueError, match=f"lack the column '{column}'"):
            prediction_map(small.drop(columns=column), None)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("predicted_latitude", np.nan), ("longitude", np.inf), ("latitude", 90.5), ("error_km", -1.0)],
    )
    def test_an_impossible_number_is_named_with_its_photo(
        self, small: pd.DataFrame, column: str, value: float
    ) -> None:
        with pytest.raises(ValueError, match=f"{column} of the photo 'photo-00007' \\(infonce\\) is {value}"):
            prediction_map(small.assign(**{column: small[column].where(small.index != 7, value)}), None)

    def test_a_photo_without_strategy_is_named_by_its_row(self, small: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="strategy is empty in row 3"):
            prediction_map(small.assign(strategy=small["strategy"].where(small.index != 3)), None)

    def test_a_photo_twice_in_a_strategy_is_named(self, small: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="'photo-00006' is twice in the strategy 'infonce', seed 0"):
            prediction_map(pd.concat([small, small.iloc[6:7]]), None)

    def test_a_photo_with_two_true_places_is_named(self, small: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="'photo-00006' has two true places"):
            prediction_map(small.assign(latitude=small["latitude"].where(small.index != 6, 1.0)), None)


@pytest.fixture
def desktop(browser: object, page: Path) -> Visit:
    """The small map on a screen of 1280 x 800, which must have stayed silent and offline to the end."""
    with Visit(browser, page) as visit:
        yield visit


class TestBrowser:
    def test_the_whole_world_fits(self, desktop: Visit) -> None:
        west, east = desktop.map("[map.getBounds().getWest(), map.getBounds().getEast()]")
        assert west <= -180.0 + 1e-6
        assert east >= 180.0 - 1e-6

    def test_the_way_back_to_the_whole_world_is_one_button(self, desktop: Visit) -> None:
        home = desktop.map("map.getZoom()")
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
        assert desktop.tab.locator(".leaflet-popup dd").first.text_content() == row.id

    def test_strategies_classes_and_overlays_switch(self, desktop: Visit, small: pd.DataFrame) -> None:
        marks = "Object.values(map._layers).filter((layer) => layer.photo !== undefined).length"
        lines = "Object.values(map._layers).filter((layer) => layer.options.opacity === 0.4).length"
        assert desktop.map(marks) == 24
        assert desktop.map(lines) == 0
        desktop.find("photo-00007")
        for strategy in STRATEGIES[:2]:
            desktop.tab.get_by_label(strategy).check()
            assert f"{strategy} (seed 0)" in desktop.tab.locator(".leaflet-popup").text_content()
        errors = small.loc[small["strategy"] == STRATEGIES[1], "error_km"]
        desktop.tab.get_by_label("beyond").uncheck()
        kept = int((errors <= ERROR_CLASSES[-2].upper_km).sum())
        assert desktop.map(marks) == 2 * kept
        desktop.tab.get_by_label("error lines").check()
        assert desktop.map(lines) == kept
        desktop.tab.get_by_label("predicted places").uncheck()
        assert desktop.map(marks) == kept

    def test_hostile_text_is_shown_and_not_run(self, desktop: Visit) -> None:
        for hostile in HOSTILE:
            desktop.find(hostile)
            assert desktop.tab.locator(".leaflet-popup dd").first.text_content() == hostile
        desktop.find("lost")
        assert HOSTILE[0] in desktop.tab.locator(".leaflet-popup .missing").text_content()

    def test_search_zooms_in_and_says_when_there_is_no_such_photo(self, desktop: Visit) -> None:
        before = desktop.map("map.getZoom()")
        desktop.find("00009")
        assert desktop.map("map.getZoom()") > before
        assert "photo-00009" in desktop.tab.locator(".found").text_content()
        desktop.find("nothing of this name")
        assert desktop.tab.locator(".found").text_content() == "No photo has this id."

    def test_the_line_across_the_180th_meridian_is_drawn_on_both_sides(self, desktop: Visit) -> None:
        desktop.find("dateline")
        drawn = desktop.map(
            "Object.values(map._layers).find((layer) => layer.options.weight === 2.5).getLatLngs()"
            ".map((piece) => [piece[0].lng, piece[piece.length - 1].lng])"
        )
        assert drawn == [[179.0, 180.0], [-180.0, -178.0]]

    def test_on_a_phone_the_map_is_above_its_controls_and_nothing_sticks_out(
        self, browser: object, page: Path
    ) -> None:
        with Visit(browser, page, 390, 844) as visit:
            above, below = (visit.tab.locator(one).bounding_box() for one in (".folium-map", ".panel"))
            assert above["height"] > 300 and above["y"] + above["height"] <= below["y"] + 1
            assert visit.tab.locator(".strip").is_visible()
            visit.tab.locator(".search input").scroll_into_view_if_needed()
            assert visit.tab.locator(".search input").is_visible()
            assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 390
            visit.tab.locator(".panel summary").click()
            assert not visit.tab.locator(".search input").is_visible()
            visit.until("document.querySelector('.folium-map').clientHeight > 750")

    def test_clusters_hold_every_true_place_and_open_into_photos(
        self, browser: object, tmp_path: Path
    ) -> None:
        crowd = table(40, ["a"], ("infonce",)).assign(
            latitude=lambda rows: 40.0 + rows["latitude"] / 100.0,
            longitude=lambda rows: 10.0 + rows["longitude"] / 100.0,
        )
        with Visit(browser, save_map(prediction_map(crowd, None), tmp_path / "crowd.html")) as visit:
            visit.tab.get_by_label("true places in clusters").check()
            counts = [int(text) for text in visit.tab.locator(".ring").all_text_contents()]
            assert 1 <= len(counts) < 10
            visit.tab.get_by_label("predicted places").uncheck()
            single = visit.map(
                "Object.values(map._layers).filter((layer) => layer.photo !== undefined).length"
            )
            assert sum(counts) + single == 40
            before = visit.map("map.getZoom()")
            visit.tab.locator(".leaflet-marker-icon").first.focus()
            visit.tab.keyboard.press("Enter")
            visit.until(f"map.getZoom() > {before}")
            visit.tab.get_by_label("true places in clusters").uncheck()
            assert visit.tab.locator(".ring").count() == 0

    def test_the_heat_of_error_is_a_picture_of_the_chosen_strategy_with_a_scale(self, desktop: Visit) -> None:
        assert not desktop.tab.locator(".heat-key").is_visible()
        desktop.tab.get_by_label("heat of error").check()
        assert desktop.tab.locator(".heat-key").is_visible()
        desktop.until("document.querySelector('img.heat').naturalWidth > 0")
        before = desktop.tab.locator("img.heat").get_attribute("src")
        desktop.tab.get_by_label(STRATEGIES[1]).check()
        assert desktop.tab.locator("img.heat").get_attribute("src") != before

    def test_a_keyboard_walks_through_the_photos_the_largest_error_first(
        self, desktop: Visit, small: pd.DataFrame
    ) -> None:
        errors = small[small["strategy"] == STRATEGIES[0]].sort_values("error_km", ascending=False)
        desktop.tab.locator(".steps .next").focus()
        for expected in errors["id"][:3]:
            desktop.tab.keyboard.press("Enter")
            assert desktop.tab.locator(".leaflet-popup dd").first.text_content() == expected
        desktop.tab.locator(".steps .previous").focus()
        desktop.tab.keyboard.press("Enter")
        assert desktop.tab.locator(".leaflet-popup dd").first.text_content() == errors["id"].iloc[1]
