"""Statements about index.html: the answer is on the first screen, the page is whole and harmless, and a phone can read it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from browsing import Visit
from PIL import Image

from lib import pipeline
from lib.data.sphere import uniform_on_sphere
from lib.evaluate import evaluation, regions
from lib.method.geodesy import distance_km
from lib.runs import Run
from lib.settings import load
from lib.show import report

HOSTILE = "<img src=x onerror=alert(1)>"


def predictions(count: int = 300) -> pd.DataFrame:
    """Two splits, two seeds, four strategies of which semivariance_margin is the better and one is named by an attacker."""
    generator, rows = np.random.default_rng(0), []
    for split in ("test", "test_blocked"):
        places = uniform_on_sphere(count, generator, 60.0)
        for name, share in (("infonce", 0.5), ("semivariogram", 0.5), ("semivariance_margin", 0.8), ("similarity", 0.45), (HOSTILE, 0.5)):
            for seed in range(2):
                guess = places + np.column_stack((np.where(generator.random(count) < share, 0.5, 20.0), np.zeros(count)))
                frame = pd.DataFrame({"id": [f"{split}{k}" for k in range(count)], "split": split, "strategy": name, "seed": seed,
                                      "latitude": places[:, 0], "longitude": places[:, 1], "predicted_latitude": guess[:, 0],
                                      "predicted_longitude": guess[:, 1], "error_km": distance_km(places, guess)})  # fmt: skip
                rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def provenance(run: Run) -> dict:
    """What the pipeline knows of a finished run."""
    return {
        "finished": "2030-01-01T00:00:00+00:00", "settings": run.settings.model_dump(mode="json"), "seeds": [0, 1], "packages": {HOSTILE: "1"},
        "git": {"commit": None, "dirty": None}, "seconds_by_notebook": {HOSTILE: 1.0},
        "machine": {"processor": HOSTILE, "cores": 2, "memory_gib": 8.0, "accelerator": None},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its tables, a figure, a map and a notebook, and its index."""
    made = Run(load("smoke"), tmp_path_factory.mktemp("results") / "run")
    frame = predictions()
    photos = pd.DataFrame({"id": frame["id"].unique()}).assign(continent=HOSTILE, country="BR")
    made.folder.mkdir()
    frame.to_parquet(made.predictions)
    photos.to_parquet(made.manifest)
    regions.make(made, frame, photos)
    evaluation.save_table(evaluation.accuracy(frame), made.table("accuracy"))
    evaluation.save_table(pd.concat([evaluation.compare(frame, resamples=200), evaluation.compare(frame, "similarity", 200)]), made.table("comparison"))
    evaluation.save_table(evaluation.accuracy(frame[frame["strategy"] == "infonce"]).assign(strategy="ceiling"), made.table("bounds"))
    for folder in ("figures", "maps", "notebooks"):
        (made.folder / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 2_400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made.figure("semivariogram"))
    for file in ("figures/semivariogram.pdf", "maps/gain_cells.html", f"maps/{HOSTILE[1:9]}.html", "notebooks/a.html", "notebooks/a.ipynb", "manifest.json"):
        (made.folder / file).write_text("<title>there</title>")
    report.write_index(made, provenance(made), [{"title": HOSTILE, "html": "notebooks/a.html", "ipynb": "notebooks/a.ipynb"}])
    return made


@pytest.fixture(scope="module")
def page(run: Run) -> Path:
    """The index."""
    return run.folder / "index.html"


def links(page: Path) -> list[str]:
    """Every address in the page but those within it."""
    found = re.findall(r'(?:href|src)="([^"]*)"', page.read_text("utf-8"))
    return [unquote(link) for link in found if not link.startswith(("#", "data:"))]


def test_every_link_leads_to_a_file_beside_the_page(page: Path) -> None:
    assert len(links(page)) > 10
    assert not [link for link in links(page) if not (page.parent / link).is_file()]


def test_every_anchor_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert anchors and not [anchor for anchor in anchors if f'id="{anchor}"' not in text]


def test_whatever_is_called_like_markup_stays_text_and_no_script_could_run(page: Path) -> None:
    text = page.read_text("utf-8")
    assert HOSTILE not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 5
    assert "<script" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_figures_are_in_the_page_and_not_empty(page: Path) -> None:
    (picture,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', page.read_text("utf-8"))
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert image.size == (report.PICTURE_PX, 225)
    assert np.asarray(image.convert("L")).std() > 5


def test_the_paper_stands_beside_with_a_warning_that_the_data_differ(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "Two different data sets." in text and "52.1" in text


def test_osv5m_is_compared_without_that_warning(run: Run, tmp_path: Path) -> None:
    told = provenance(run)
    told["settings"]["dataset"]["name"] = "osv5m"
    before = (run.folder / "index.html").read_text()
    text = report.write_index(run, told, []).read_text()
    (run.folder / "index.html").write_text(before)
    assert "Two different data sets." not in text and "both about OpenStreetView-5M" in text


def test_a_run_without_tables_still_has_its_page(tmp_path: Path) -> None:
    bare = Run(load("smoke"), tmp_path / "bare")
    text = report.write_index(bare, provenance(bare) | {"outdated": []}, []).read_text()
    assert "Run all notebooks again" not in text
    warned = report.write_index(bare, provenance(bare) | {"outdated": [f"training-{HOSTILE}"]}, []).read_text()
    assert "Run all notebooks again" in warned and HOSTILE not in warned
    assert "Nothing to compare" in text and "notebook 05" in text


def test_a_chart_has_one_scale_that_holds_zero_and_every_interval() -> None:
    rows = [report.answer.Row("a", 9, 3.4, 2.2, 4.5, "gains"), report.answer.Row("b", 9, -1.8, -3.1, -0.7, "loses"),
            report.answer.Row("c", 3, 9.0, float("nan"), float("nan"), "too few photos")]  # fmt: skip
    drawn = report._chart("title", rows)
    assert 0.0 <= drawn["rows"][1]["left"] < drawn["rows"][1]["dot"] < drawn["rows"][1]["right"] < drawn["zero"] < drawn["rows"][0]["left"] <= 100.0
    assert drawn["rows"][2]["dot"] is None
    assert ("0" in [text for _, text in drawn["ticks"]]) and drawn["ticks"][0][0] == 0.0 and drawn["ticks"][-1][0] == 100.0


class TestBrowser:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_answer_and_its_charts_are_on_the_first_screen(self, browser: object, page: Path, scheme: str) -> None:
        with Visit(browser, page, ready="h1", scheme=scheme) as visit:
            for part in (".answer", ".charts"):
                box = visit.tab.locator(part).bounding_box()
                assert box["y"] + box["height"] <= 800
            said = visit.tab.locator(".answer").text_content()
            assert "semivariance_margin places" in said and "Where on Earth?" in said and "not shown" in said

    def test_ink_and_ground_differ_enough_in_light_and_dark(self, browser: object, page: Path) -> None:
        grounds = []
        for scheme in ("light", "dark"):
            with Visit(browser, page, ready="h1", scheme=scheme) as visit:
                ink, ground = (
                    np.array(re.findall(r"\d+", visit.tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3], dtype=float)
                    for name in ("color", "backgroundColor")
                )
                assert np.abs(ink - ground).min() > 120
                grounds.append(ground.mean())
        assert grounds[0] > 200 > 60 > grounds[1]

    def test_links_open_and_pictures_have_been_decoded(self, browser: object, page: Path) -> None:
        with Visit(browser, page, ready="h1") as visit:
            widths = visit.tab.evaluate("[...document.images].map((image) => image.naturalWidth)")
            assert widths and min(widths) > 0
            visit.tab.get_by_role("link", name="Where it helps").click()
            visit.tab.wait_for_url("**/maps/gain_cells.html")
            assert visit.tab.title() == "there"

    def test_on_a_phone_nothing_is_wider_than_the_screen(self, browser: object, page: Path) -> None:
        with Visit(browser, page, 390, 844, ready="h1") as visit:
            assert visit.tab.evaluate("document.documentElement.scrollWidth") <= 390
            assert visit.tab.locator(".answer .verdict").bounding_box()["y"] < 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_executed_notebook_as_a_page_is_dark_where_the_screen_is(browser: object, tmp_path: Path, scheme: str) -> None:
    cells = [nbformat.v4.new_markdown_cell("# A heading", id="head"), nbformat.v4.new_code_cell("x = 1", id="code")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "executed.ipynb")
    with Visit(browser, pipeline.render(tmp_path / "executed.ipynb"), ready="h1", scheme=scheme) as visit:
        ground, ink, code = (
            sum(map(int, re.findall(r"\d+", visit.tab.evaluate(f"getComputedStyle(document.querySelector('{part}')).{name}"))[:3])) / 3
            for part, name in (("body", "backgroundColor"), ("h1", "color"), (".jp-InputArea-editor", "backgroundColor"))
        )
        assert (ground < 60 and ink > 180 and code < 80) if scheme == "dark" else (ground > 240 and ink < 60 and code > 230)
