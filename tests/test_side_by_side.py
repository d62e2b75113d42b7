"""Statements about two maps that are one: they move together, a photo opens on both, each says how its
strategy does."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from browsing import Visit
from test_maps import HOSTILE, STRATEGIES, photo_folder, table

from lib.show.maps import save_map
from lib.show.side_by_side import side_by_side_map

READY = ".bar h1:not(:empty)"


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """Thirty photos, two strategies, the first photos named by an attacker; and the folder of the photos."""
    folder = tmp_path_factory.mktemp("photos")
    predictions = table(30, photo_folder(folder, 5), STRATEGIES[:2])
    for strategy in STRATEGIES[:2]:
        predictions.loc[predictions.index[predictions["strategy"] == strategy][: len(HOSTILE)], "id"] = (
            HOSTILE
        )
    return predictions, folder


@pytest.fixture(scope="module")
def page(frame: tuple[pd.DataFrame, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a file."""
    return save_map(
        side_by_side_map(*frame, title="two of them"), tmp_path_factory.mktemp("page") / "pair.html"
    )


def views(visit: Visit) -> list[list[float]]:
    """Latitude, longitude and zoom of both maps."""
    view = "(one => [one.getCenter().lat, one.getCenter().lng, one.getZoom()])"
    return visit.map(f"[map, window[map.getContainer().id + '_right']].map({view})")


def test_one_strategy_cannot_be_compared(frame: tuple[pd.DataFrame, Path]) -> None:
    predictions, folder = frame
    with pytest.raises(ValueError, match="two strategies are needed to compare; there is only infonce"):
        side_by_side_map(predictions[predictions["strategy"] == "infonce"], folder)
    with pytest.raises(ValueError, match="no strategy 'decay'; there are infonce, semivariogram"):
        side_by_side_map(predictions, folder, right="decay")


def test_no_markup_of_the_data_reaches_the_page(page: Path) -> None:
    assert not any(id_ in page.read_text("utf-8") for id_ in HOSTILE[:3])


class TestBrowser:
    def test_what_one_map_does_the_other_does(self, browser: object, page: Path) -> None:
        with Visit(browser, page, ready=READY) as visit:
            visit.map("map.setView([40, 20], 5, {animate: false}) && 0")
            left, right = views(visit)
            assert left == pytest.approx(right) and left[2] == 5
            box = visit.tab.locator(".right").bounding_box()
            visit.tab.mouse.move(box["x"] + 300, box["y"] + 500)
            visit.map(
                "window[map.getContainer().id + '_right'].once('moveend', () => { window.stopped = true; }) "
                "&& (window.stopped = false)"
            )
            visit.tab.mouse.down()
            visit.tab.mouse.move(box["x"] + 200, box["y"] + 400, steps=5)
            visit.tab.mouse.up()
            lag = 0.0
            while not visit.tab.evaluate("stopped"):
                left, right = views(visit)
                lag = max(lag, abs(left[1] - right[1]))
            assert lag <= 0.51 * 360 / (256 * 2**5), "half a pixel at zoom 5"
            left, right = views(visit)
            assert left == pytest.approx(right, abs=1e-6) and left[1] > 21

    def test_a_photo_opens_on_both_with_its_picture_and_each_strategys_error(
        self, browser: object, page: Path
    ) -> None:
        with Visit(browser, page, ready=READY) as visit:
            visit.find("photo-00009")
            assert visit.tab.locator(".leaflet-popup").count() == 2
            visit.until(
                "[...document.querySelectorAll('.leaflet-popup img')].every((image) => image.naturalWidth > "
                "0)"
            )
            for popup, strategy in zip(
                visit.tab.locator(".leaflet-popup").all(), STRATEGIES[:2], strict=True
            ):
                assert strategy in popup.text_content() and "photo-00009" in popup.text_content()
            visit.tab.locator(".leaflet-popup-close-button").first.click()
            visit.until("document.querySelectorAll('.leaflet-popup').length === 0")

    def test_each_map_says_how_many_photos_lie_within_200_km_and_the_filter_keeps_some(
        self, browser: object, frame: tuple[pd.DataFrame, Path], page: Path
    ) -> None:
        predictions, _ = frame
        wide = predictions.pivot(index="id", columns="strategy", values="error_km")
        with Visit(browser, page, ready=READY) as visit:
            for share, strategy in zip(visit.tab.locator(".side .share").all(), STRATEGIES[:2], strict=True):
                assert f"{100 * (wide[strategy] <= 200).mean():.1f}" in share.text_content()
            visit.tab.locator(".filter").select_option("right")
            nearer = int((wide[STRATEGIES[1]] < wide[STRATEGIES[0]]).sum())
            assert f"of {nearer} within" in visit.tab.locator(".side .share").first.text_content()
            visit.tab.locator(".side select").first.select_option("1")
            assert "no such photo" in visit.tab.locator(".side .share").first.text_content()

    def test_hostile_ids_are_shown_and_not_run(self, browser: object, page: Path) -> None:
        with Visit(browser, page, ready=READY) as visit:
            for hostile in HOSTILE:
                visit.find(hostile)
                assert visit.tab.locator(".leaflet-popup dd").first.text_content() == hostile

    def test_on_a_phone_one_map_lies_above_the_other(self, browser: object, page: Path) -> None:
        with Visit(browser, page, 390, 844, ready=READY) as visit:
            above, below = (visit.tab.locator(one).bounding_box() for one in (".folium-map", ".right"))
            assert above["y"] + above["height"] <= below["y"] + 2 and below["height"] > 300
            assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 390
            assert visit.tab.locator(".search input").is_visible()
