"""Statements about index.html: the answer is on the first screen, the page is whole and harmless, and a phone
can read it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
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
from lib.evaluate import evaluation, intervals, regions
from lib.method.geodesy import distance_km
from lib.runs import Run
from lib.settings import load
from lib.show import report

HOSTILE = "<img src=x onerror=alert(1)>"


def predictions(count: int = 300) -> pd.DataFrame:
    """Two splits, four seeds, five strategies of which semivariance_margin is the better and one is named by
    an attacker."""
    generator, rows = np.random.default_rng(0), []
    for split in ("test", "test_blocked"):
        places = uniform_on_sphere(count, generator, 60.0)
        for name, share in (
            ("infonce", 0.5),
            ("semivariogram", 0.5),
            ("semivariance_margin", 0.8),
            ("similarity", 0.45),
            (HOSTILE, 0.5),
        ):
            for seed in range(4):
                guess = places + np.column_stack(
                    (np.where(generator.random(count) < share, 0.5, 20.0), np.zeros(count))
                )
                frame = pd.DataFrame(
                    {
                        "id": [f"{split}{k}" for k in range(count)],
                        "split": split,
                        "strategy": name,
                        "seed": seed,
                        "latitude": places[:, 0],
                        "longitude": places[:, 1],
                        "predicted_latitude": guess[:, 0],
                        "predicted_longitude": guess[:, 1],
                        "error_km": distance_km(places, guess),
                    }
                )
                rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def provenance(run: Run) -> dict:
    """What the pipeline knows of a finished run."""
    return {
        "finished": "2030-01-01T00:00:00+00:00", "settings": run.settings.model_dump(mode="json"),
        "seeds": [0, 1], "packages": {HOSTILE: "1"},
        "git": {"commit": None, "dirty": None}, "seconds_by_notebook": {HOSTILE: 1.0},
        "machine": {"processor": HOSTILE, "cores": 2, "memory_gib": 8.0, "accelerator": None},
    }  # fmt: skip


def choose(run: Run, strategy: str) -> None:
    """Histories in which ``strategy`` has the highest accuracy on validation."""
    for name in run.settings.training.strategies:
        for seed in run.settings.training.seeds:
            run.history(name, seed).parent.mkdir(exist_ok=True)
            run.history(name, seed).write_text(
                f"epoch,validation_acc_200km\n1,{0.6 if name == strategy else 0.5}\n"
            )


def answer(page: Path) -> str:
    """The words of the first screen's box."""
    box = re.search(r'<section class="answer.*?</section>', page.read_text("utf-8"), re.S)[0]
    return " ".join(re.sub("<[^>]+>", " ", box).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its tables, a figure, a map and a notebook, and its index."""
    made = Run(load("smoke", ["training.strategies=infonce,semivariogram,semivariance_margin,similarity"]),
               tmp_path_factory.mktemp("results") / "run")  # fmt: skip
    frame = predictions()
    photos = pd.DataFrame({"id": frame["id"].unique()}).assign(continent=HOSTILE, country="BR")
    made.folder.mkdir()
    frame.to_parquet(made.predictions)
    photos.to_parquet(made.manifest)
    choose(made, "semivariance_margin")
    regions.make(made, frame, photos)
    evaluation.save_table(evaluation.accuracy(frame), made.table("accuracy"))
    evaluation.save_table(
        pd.concat(
            [intervals.compare(frame, resamples=200), intervals.compare(frame, "similarity", resamples=200)]
        ),
        made.table("comparison"),
    )
    evaluation.save_table(
        evaluation.accuracy(frame[frame["strategy"] == "infonce"]).assign(strategy="ceiling"),
        made.table("bounds"),
    )
    for folder in ("figures", "maps", "notebooks"):
        (made.folder / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 2_400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made.figure("semivariogram"))
    for file in (
        "figures/semivariogram.pdf",
        "maps/gain_cells.html",
        f"maps/{HOSTILE[1:9]}.html",
        "notebooks/a.html",
        "notebooks/a.ipynb",
        "provenance.json",
    ):
        (made.folder / file).write_text("<title>there</title>")
    report.write_index(
        made, provenance(made), [{"title": HOSTILE, "html": "notebooks/a.html", "ipynb": "notebooks/a.ipynb"}]
    )
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
    warned = report.write_index(
        bare, provenance(bare) | {"outdated": [f"training-{HOSTILE}"]}, []
    ).read_text()
    assert "Run all notebooks again" in warned and HOSTILE not in warned
    assert "Nothing to compare" in text and "notebook 05" in text


@pytest.fixture
def rewritten(run: Run) -> Iterator[Callable[[str], str]]:
    """The first screen's words where validation chose a strategy; the page and the histories are put back in
    the end."""
    page = run.folder / "index.html"
    before = page.read_text()

    def words(strategy: str) -> str:
        choose(run, strategy)
        return answer(report.write_index(run, provenance(run), []))

    yield words
    choose(run, "semivariance_margin")
    page.write_text(before)


def test_the_strategy_that_validation_chose_leads_and_not_the_best_of_the_test_split(
    rewritten: Callable,
) -> None:
    """On the test split semivariance_margin is far ahead; validation chose semivariogram."""
    said = rewritten("semivariogram")
    assert said.startswith("Not shown: validation chose semivariogram, which is not shown to gain")
    assert "Against GeoCLIP as it is, semivariogram changes" in said


def test_a_gain_of_what_uses_no_curve_is_no_gain_of_the_semivariogram(rewritten: Callable) -> None:
    assert rewritten("similarity").startswith("Not by the semivariogram: validation chose similarity")


def test_where_validation_chose_the_baseline_nothing_leads(rewritten: Callable) -> None:
    assert rewritten("infonce").startswith("No: validation chose infonce, GeoCLIP as it is")


def test_the_answer_tells_each_difference_with_its_interval_and_verdict(page: Path) -> None:
    said = answer(page)
    assert said.startswith("Yes: validation chose semivariance_margin, which gains")
    assert re.search(
        r"semivariance_margin changes .* by \+\d+\.\d points \(95 % interval \+.* to \+.*\), a gain\.", said
    )
    assert re.search(
        r"The paper’s own strategy, semivariogram: .*, not shown\. The control without geography, similari",
        said,
    )
    assert "Of the 3 strategies that use the curve 1 gain and 0 lose." in said
    assert "It gains in &lt;img src=x onerror=alert(1)&gt;. " in said
    assert re.search(r"On cells held out whole: \+.*, a gain\.", said)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "gains"), (0, 18, "not shown"), (-1, 9, "not shown"), (-2, -1, "loses")],
)
def test_an_interval_that_holds_zero_is_not_shown_however_large_the_estimate(
    low: float, high: float, verdict: str
) -> None:
    one = {
        "strategy": "decayed",
        "baseline": "infonce",
        "metric": "acc_200km",
        "difference": 0.09,
        "n": 9,
        "split": "test",
    }
    (row,) = report.strategy_rows(pd.DataFrame([one | {"ci_low": low / 100, "ci_high": high / 100}]), "test")
    assert row.verdict == verdict


def test_what_gains_stands_before_a_larger_estimate_that_is_not_shown() -> None:
    one = {"baseline": "infonce", "metric": "acc_200km", "n": 9, "split": "test"}
    wide = one | {"strategy": "wide", "difference": 0.08, "ci_low": -0.01, "ci_high": 0.17}
    sure = one | {"strategy": "sure", "difference": 0.02, "ci_low": 0.01, "ci_high": 0.03}
    assert [row.label for row in report.strategy_rows(pd.DataFrame([wide, sure]), "test")] == ["sure", "wide"]


def test_points_have_a_true_minus_and_nought_has_no_sign() -> None:
    assert [report.points(value) for value in (3.44, -0.5, -0.04, 0.0)] == ["+3.4", "−0.5", "0.0", "0.0"]


def test_the_kept_reference_is_read_with_the_names_and_settings_of_today(tmp_path: Path) -> None:
    """Its files still say distance_gate, and have settings that are gone."""
    kept = report.REFERENCE / "quick"
    run = Run(load("quick"), tmp_path / "run")
    (run.folder / "tables").mkdir(parents=True)
    for name in ("semivariogram.json", "tables/accuracy.csv", "tables/comparison.csv"):
        (run.folder / name).write_text(
            (kept / name).read_text().replace("distance_gate", "semivariance_margin")
        )
    table, _ = report.compare_with_reference(run)
    assert table["reproduced"].all() and "semivariance_margin" in set(table["strategy"])


def test_a_chart_has_one_scale_that_holds_zero_and_every_interval() -> None:
    rows = [
        report.Row("a", 9, 3.4, 2.2, 4.5, "gains", True),
        report.Row("b", 9, -1.8, -3.1, -0.7, "loses", True),
        report.Row("c", 3, 9.0, float("nan"), float("nan"), "too few photos", False),
    ]
    drawn = report._chart("title", rows)
    gain, loss, few = drawn["rows"]
    assert 0.0 <= loss["left"] < loss["dot"] < loss["right"] < drawn["zero"] < gain["left"] <= 100.0
    assert few["dot"] is None
    places, texts = zip(*drawn["ticks"], strict=True)
    assert "0" in texts and (places[0], places[-1]) == (0.0, 100.0)


class TestBrowser:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_answer_and_its_charts_are_on_the_first_screen(
        self, browser: object, page: Path, scheme: str
    ) -> None:
        with Visit(browser, page, ready="h1", scheme=scheme) as visit:
            for part in (".answer", ".charts"):
                box = visit.tab.locator(part).bounding_box()
                assert box["y"] + box["height"] <= 800
            said = visit.tab.locator(".answer").text_content()
            assert (
                "semivariance_margin changes the share" in said
                and "Where on Earth?" in said
                and "not shown" in said
            )

    def test_ink_and_ground_differ_enough_in_light_and_dark(self, browser: object, page: Path) -> None:
        grounds = []
        for scheme in ("light", "dark"):
            with Visit(browser, page, ready="h1", scheme=scheme) as visit:
                ink, ground = (
                    np.array(
                        re.findall(r"\d+", visit.tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3],
                        dtype=float,
                    )
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
def test_an_executed_notebook_as_a_page_is_dark_where_the_screen_is(
    browser: object, tmp_path: Path, scheme: str
) -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# A heading", id="head"),
        nbformat.v4.new_code_cell("x = 1", id="code"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "executed.ipynb")
    with Visit(browser, pipeline.render(tmp_path / "executed.ipynb"), ready="h1", scheme=scheme) as visit:
        ground, ink, code = (
            sum(
                map(
                    int,
                    re.findall(
                        r"\d+",
                        visit.tab.evaluate(f"getComputedStyle(document.querySelector('{part}')).{name}"),
                    )[:3],
                )
            )
            / 3
            for part, name in (
                ("body", "backgroundColor"),
                ("h1", "color"),
                (".jp-InputArea-editor", "backgroundColor"),
            )
        )
        assert (
            (ground < 60 and ink > 180 and code < 80)
            if scheme == "dark"
            else (ground > 240 and ink < 60 and code > 230)
        )
