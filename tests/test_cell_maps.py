"""Statements about the maps of cells: honest colours, a keyboard reaches every cell, text stays text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browsing import Visit
from test_maps import HOSTILE, data_of

from lib.evaluate.regions import cell_errors, cell_gains
from lib.method.geodesy import distance_km
from lib.runs import Run
from lib.settings import load
from lib.show.cell_maps import draw_cells, error_cell_map, gain_cell_map
from lib.show.maps import save_map

MARKUP = HOSTILE[0]


def predicted(split: str, strategy: str, seed: int, places: np.ndarray, north: np.ndarray) -> pd.DataFrame:
    """Predictions of the photos at ``places`` [N, 2], each ``north`` degrees too far north."""
    guess = places + np.column_stack((north, np.zeros(len(places))))
    frame = pd.DataFrame(places, columns=["latitude", "longitude"])
    frame = frame.assign(
        id=[f"{split}{k}" for k in range(len(places))], split=split, strategy=strategy, seed=seed
    )
    frame["error_km"] = distance_km(places, guess)
    return frame.assign(predicted_latitude=guess[:, 0], predicted_longitude=guess[:, 1])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Two splits, three seeds; decayed places some photos near Africa that infonce does not."""
    generator, rows = np.random.default_rng(0), []
    for split in ("test", "test_blocked"):
        meridians = np.resize([-100.0, 10.0, 100.0, 170.0] if split == "test" else [10.0, 100.0], 240)
        places = np.column_stack((generator.uniform(-2, 2, 240), meridians + generator.uniform(-2, 2, 240)))
        base = generator.random((3, 240)) < 0.4
        helped = base | ((np.abs(places[:, 1] - 10.0) < 5.0) & (generator.random((3, 240)) < 0.6))
        for name, hits in (
            ("infonce", base),
            (MARKUP, base & (generator.random((3, 240)) < 0.9)),
            ("decayed", helped),
        ):
            rows += [
                predicted(split, name, seed, places, np.where(hits[seed], 0.5, 60.0)) for seed in range(3)
            ]
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def pages(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both maps as files; every cell lies in a country with a hostile name."""
    folder = tmp_path_factory.mktemp("cells")
    gains, errors = (of(frame).assign(place=MARKUP) for of in (cell_gains, cell_errors))
    return {
        "gain": save_map(gain_cell_map(gains), folder / "gain.html"),
        "error": save_map(error_cell_map(errors), folder / "error.html"),
    }


class TestPage:
    def test_a_view_has_one_value_a_cell_in_the_grids_order(
        self, frame: pd.DataFrame, pages: dict[str, Path]
    ) -> None:
        data, gains = data_of(pages["gain"]), cell_gains(frame)
        of_view = gains.query(
            "side_km == 2_000 and strategy == 'decayed' and metric == 'acc_200km'"
        ).sort_values("group")
        for split, rows in of_view.groupby("split"):
            view, grid = data["views"][f"{split}|2000|decayed|acc_200km"], data["grids"][f"{split}|2000"]
            assert view["value"] == pytest.approx(100.0 * rows["difference"], rel=1e-3)
            assert view["verdict"] == rows["verdict"].tolist()
            assert grid["photos"] == rows["n"].tolist()
            assert len(grid["bounds"]) == 4 * len(rows)

    def test_it_opens_on_the_strategy_that_gains_in_most_cells(self, pages: dict[str, Path]) -> None:
        (choice,) = [one for one in data_of(pages["gain"])["choices"] if one["key"] == "strategy"]
        assert choice["options"][0][0] == "decayed"

    def test_no_markup_of_the_data_reaches_the_page(self, pages: dict[str, Path]) -> None:
        assert all(MARKUP not in page.read_text("utf-8") for page in pages.values())

    def test_of_the_baseline_alone_only_errors_are_drawn(self, frame: pd.DataFrame, tmp_path: Path) -> None:
        run = Run(load("smoke"), tmp_path / "run")
        alone = frame[frame["strategy"] == "infonce"]
        draw_cells(run, {"error_cells": cell_errors(alone), "gain_cells": cell_gains(alone)}, ["infonce"])
        assert [path.name for path in (tmp_path / "run" / "maps").iterdir()] == ["error_cells.html"]

    def test_a_missing_column_and_an_empty_table_are_named(self, frame: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="lack the column 'median_km'"):
            error_cell_map(cell_errors(frame).drop(columns="median_km"))
        with pytest.raises(ValueError, match="have no rows"):
            gain_cell_map(cell_gains(frame).iloc[:0])


class TestBrowser:
    def test_only_cells_that_differ_have_a_colour(self, browser: object, pages: dict[str, Path]) -> None:
        data = data_of(pages["gain"])
        verdicts = data["views"]["test|2000|decayed|acc_200km"]["verdict"]
        with Visit(browser, pages["gain"]) as visit:
            cells = visit.tab.locator("path.cell")

            def coloured() -> int:
                fills = cells.evaluate_all("cells => cells.map(cell => cell.getAttribute('fill'))")
                return sum(fill in data["ramp"] + data["loses"] for fill in fills)

            stated = coloured()
            assert cells.count() == len(verdicts) and stated == verdicts.count("gains") > 0
            assert visit.tab.locator(".number").count() == stated
            visit.tab.get_by_label("estimates that are not shown").check()
            assert coloured() > stated

    def test_the_summary_follows_the_choice(self, browser: object, pages: dict[str, Path]) -> None:
        grids = data_of(pages["gain"])["grids"]
        with Visit(browser, pages["gain"]) as visit:
            said, cells = visit.tab.locator(".summary"), visit.tab.locator("path.cell")
            assert "decayed gains in" in said.text_content()
            visit.tab.get_by_role("radio", name=MARKUP).check()
            assert MARKUP in said.text_content()
            visit.tab.get_by_label("4,000 km").check()
            assert cells.count() == len(grids["test|4000"]["photos"])
            visit.tab.get_by_label("2,000 km").check()
            visit.tab.get_by_label("cells held out whole").check()
            assert (
                cells.count() == len(grids["test_blocked|2000"]["photos"]) < len(grids["test|2000"]["photos"])
            )

    @pytest.mark.parametrize("kind", ["gain", "error"])
    def test_a_keyboard_opens_the_cells(self, browser: object, pages: dict[str, Path], kind: str) -> None:
        label = "document.activeElement.getAttribute('aria-label')"
        with Visit(browser, pages[kind]) as visit:
            assert visit.tab.locator('path.cell[tabindex="0"]').count() == 1
            visit.tab.locator('path.cell[tabindex="0"]').focus()
            first = visit.tab.evaluate(label)
            for key in ("ArrowRight", "ArrowRight"):
                visit.tab.keyboard.press(key)
            assert visit.tab.evaluate(label) != first and "photos" in visit.tab.evaluate(label)
            visit.tab.keyboard.press("Enter")
            visit.tab.wait_for_selector(".leaflet-popup dl")
            assert visit.first_fact() == MARKUP
            visit.tab.keyboard.press("Escape")
            visit.tab.locator(".leaflet-popup").wait_for(state="detached")

    @pytest.mark.parametrize("kind", ["gain", "error"])
    def test_on_a_phone_map_and_words_fit(self, browser: object, pages: dict[str, Path], kind: str) -> None:
        with Visit(browser, pages[kind], 390, 844) as visit:
            assert visit.width() <= 390
            assert visit.tab.locator(".summary").is_visible()
            assert visit.tab.locator(".folium-map").bounding_box()["height"] > 300
