"""Statements about index.html: it answers first, is whole and harmless, can be read on a phone and moved."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from browsing import Visit
from conftest import adopt, fitted, write_later, write_world
from PIL import Image

from lib.data.sphere import uniform_on_sphere
from lib.evaluate import evaluation, intervals
from lib.method.geodesy import distance_km
from lib.runs import Run, cache
from lib.settings import load
from lib.show import maps, pages, reference, report
from lib.show.style import place_label
from lib.train.metrics import COLUMNS

MARKUP = "<img src=x onerror=alert(1)>"
STRATEGIES = {"infonce": 0.5, "semivariogram": 0.5, "semivariance_margin": 0.8, "similarity": 0.45,
              "nearest_neighbour": 0.3, MARKUP: 0.5}  # fmt: skip
"""Shares of the photos that each places well; one is named by an attacker."""
FIRST = ("answer", "semivariogram", "differences")
NOTEBOOK = {"title": MARKUP, "html": "notebooks/a.html", "ipynb": "notebooks/a.ipynb"}


def predictions(count: int = 300) -> pd.DataFrame:
    """Two splits, four seeds; whatever is wrong is too far north."""
    generator, rows = np.random.default_rng(0), []
    for split in ("test", "test_blocked"):
        places = uniform_on_sphere(count, generator, 60.0)
        frame = pd.DataFrame(places, columns=["latitude", "longitude"])
        frame = frame.assign(id=[f"{split}{k}" for k in range(count)], split=split)
        for name, share in STRATEGIES.items():
            for seed in range(1 if name == "nearest_neighbour" else 4):
                north = np.where(generator.random(count) < share, 0.5, 20.0)
                guess = places + np.column_stack((north, np.zeros(count)))
                error_km = distance_km(places, guess)
                guess = {"predicted_latitude": guess[:, 0], "predicted_longitude": guess[:, 1]}
                rows.append(frame.assign(strategy=name, seed=seed, error_km=error_km, **guess))
    return pd.concat(rows, ignore_index=True)


def provenance(run: Run) -> dict:
    """What the pipeline knows of a finished run."""
    return {
        "finished": "2030-01-01T00:00:00+00:00", "settings": run.settings.model_dump(mode="json"),
        "packages": {MARKUP: "1"}, "git": {"commit": None, "dirty": None},
        "seconds_by_notebook": {MARKUP: 1.0},
        "machine": {"processor": MARKUP, "cores": 2, "memory_gib": 8.0, "accelerator": None},
    }  # fmt: skip


def choose(run: Run, strategy: str) -> None:
    """Finished trainings in whose histories ``strategy`` has the highest accuracy on validation."""
    for name, seed in itertools.product(run.settings.training.strategies, run.settings.training.seeds):
        outputs = run.checkpoint(name, seed), run.history(name, seed)
        accuracy = 0.6 if name == strategy else 0.5
        for path in outputs:
            path.parent.mkdir(exist_ok=True)
            write_later(path, f"epoch,validation_acc_200km\n1,{accuracy}\n")
        cache.write_receipt(run, f"training-{outputs[0].stem}", {}, outputs, 0.0)


def answer(page: Path) -> str:
    """The words of the first screen's box."""
    box = re.search(r'<section class="answer.*?</section>', page.read_text("utf-8"), re.S)[0]
    return " ".join(re.sub("<[^>]+>", " ", box).split())


def pairs_of(run: Run, distances_km: list[float]) -> pd.DataFrame:
    """Pairs of the first photos, said to be so far apart."""
    first, second = pd.read_parquet(run.manifest)["id"].iloc[:2]
    looks = {"dissimilarity": 0.25, "gamma": 0.75, "first": first, "second": second}
    return pd.DataFrame({"distance_km": distances_km}).assign(**looks)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its tables, a figure, a map and a notebook, and its index."""
    trained = "training.strategies=infonce,semivariogram,semivariance_margin,similarity"
    folder = tmp_path_factory.mktemp("results")
    root = f"dataset.root={folder / 'windows'}"
    made = Run(load("smoke", [trained, root, "device=cpu"]), folder / "run")
    write_world(made, {"train": 40, "validation": 40, "test": 1})
    frame = predictions()
    continents = pd.Series(MARKUP, frame["id"].unique())
    choose(made, "semivariance_margin")
    accuracy = evaluation.accuracy(frame)
    compared = [intervals.compare(frame, baseline, resamples=200) for baseline in ("infonce", "similarity")]
    ceiling = accuracy.drop_duplicates("split").assign(strategy="ceiling")
    tables = {
        "accuracy": accuracy, "comparison": pd.concat(compared), "bounds": ceiling,
        "intervals": intervals.levels(frame, resamples=200),
        "gain_by_continent": evaluation.continent_gains(frame, continents),
        "cut": pd.DataFrame({"said": [f"The split is {MARKUP}."]}),
        "typical_pairs": pairs_of(made, [90.0, 400.0, 5_000.0]),
    }  # fmt: skip
    for name, table in tables.items():
        evaluation.save_table(table, made.table(name))
    for name in ("figures", "maps", "notebooks"):
        (made.folder / name).mkdir()
    frame.to_parquet(made.predictions, index=False)
    for name in FIRST:
        Image.new("RGB", (2_400, 300), "white").save(made.figure(name))
    drawn = ("maps/predictions.html", *(f"figures/{name}.pdf" for name in FIRST))
    for file in (*drawn, NOTEBOOK["html"], NOTEBOOK["ipynb"], "provenance.json"):
        (made.folder / file).write_text("<title>there</title>")
    report.write_index(made, provenance(made), [NOTEBOOK])
    return made


@pytest.fixture(scope="module")
def page(run: Run) -> Path:
    """The index."""
    return run.folder / "index.html"


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    shutil.copytree(run.folder, tmp_path / "run")
    return Run(run.settings, tmp_path / "run")


def test_every_link_of_the_small_page_leads_to_a_file_beside_it_or_an_anchor_in_it(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [unquote(link) for link in re.findall(r'(?:href|src)="([^"]*)"', text) if link != "data:,"]
    assert len(links) > 20 and "figures/semivariogram.png" in links and page.stat().st_size < 60_000
    for link in links:
        assert f'id="{link[1:]}"' in text if link.startswith("#") else (page.parent / link).is_file(), link


def test_whatever_is_called_like_markup_stays_text_and_no_script_could_run(page: Path) -> None:
    text = page.read_text("utf-8")
    assert MARKUP not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") >= 5
    assert '<p class="note">The split is &lt;img' in text
    assert "<script" not in text
    assert "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'" in text


@pytest.mark.parametrize("rises", [None, True, False])
def test_a_run_without_tables_has_its_page_and_a_curve_that_does_not_rise_is_called_that(
    tmp_path: Path, rises: bool | None
) -> None:
    bare = Run(load("smoke"), tmp_path / "bare")
    bare.folder.mkdir()
    if rises is not None:
        fitted(rises=rises).save(bare.semivariogram)
    text = report.write_index(bare, provenance(bare), []).read_text()
    assert "Nothing to compare" in text and "notebook 05" in text
    assert text.count("no rising curve beats a constant") == (rises is False)
    assert ("the strategies that read it were left out" in text) is (rises is False)
    assert ("nugget 0.100, partial sill 0.850" in text) is (rises is True)


def test_the_page_trains_nothing(copy: Run) -> None:
    copy.history("similarity", 0).unlink()
    assert "Nothing to compare" in answer(report.write_index(copy, provenance(copy), []))
    assert not copy.history("similarity", 0).exists()


def test_only_other_photos_than_the_papers_are_said_to_be_others(page: Path, copy: Run) -> None:
    warning, told = "about two different data sets", provenance(copy)
    assert warning in page.read_text()
    told["settings"]["dataset"]["name"] = "osv5m"
    assert warning not in report.write_index(copy, told, []).read_text()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("semivariogram", "Unclear: it may help or harm"),
        ("similarity", "Not by the semivariogram: what did best uses no curve; it harms"),
        ("infonce", "No: on the validation photos GeoCLIP’s loss did best"),
    ],
)
def test_what_validation_chose_leads_and_not_the_best_of_the_test_split(
    copy: Run, chosen: str, said: str
) -> None:
    choose(copy, chosen)
    assert answer(report.write_index(copy, provenance(copy), [])).startswith(said)


def test_the_answer_tells_each_difference_with_its_verdict_and_interval(page: Path) -> None:
    said = answer(page)
    assert said.startswith("Yes: it helps On the validation photos distance margin did best")
    assert re.search(r"Of the 300 random photos it places \d\d\.\d % within 200 km, GeoCLIP’s loss", said)
    numbers = r"[+\u2212]?\d+\.\d, [+\u2212]?\d+\.\d to [+\u2212]?\d+\.\d\."
    for told in (
        "distance margin , which did best on validation: a gain: ",
        "the paper’s idea , hard and false negatives: unclear: ",
        "similarity , the control without geography: ",
        "nearest look-alike , the place of the most alike training photo, no training: a loss: ",
        "distance margin on held-out cells, within 750 km: a gain: ",
    ):
        assert re.search(told + ("(a loss|unclear): " if "control" in told else "") + numbers, said), told
    assert "Of the 3 strategies that use the curve 1 gain and 0 lose." in said
    assert "It gains in &lt;img src=x onerror=alert(1)&gt;." in said
    cells = re.findall(r'<td class="d unclear">(.*?)</td>', page.read_text("utf-8"))
    assert cells and all(re.sub("<[^>]+>", "", cell).startswith("unclear: ") for cell in cells)


def test_eight_validation_photos_choose_nothing(copy: Run) -> None:
    pd.read_parquet(copy.manifest).drop(range(48, 80)).to_parquet(copy.manifest)
    adopt(copy)
    said = answer(report.write_index(copy, provenance(copy), []))
    assert said.startswith("Undecided: 8 validation photos are too few to choose a strategy by")


def test_a_gain_that_held_out_cells_do_not_show_is_told_in_the_first_line(copy: Run) -> None:
    table = pd.read_csv(copy.table("comparison")).query("split == 'test'")
    held_out = table.assign(split="test_blocked", ci_low=-1.0)
    evaluation.save_table(pd.concat([table, held_out]), copy.table("comparison"))
    page = report.write_index(copy, provenance(copy), [NOTEBOOK])
    said = "Partly: it helps near the training photos; far from them it may help or harm"
    assert answer(page).startswith(said)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.1, 19, "gains", "a gain: +9.0, +0.1 to +19.0"),
        (0, 18, "unclear", "unclear: +9.0, 0.0 to +18.0"),
        (-1.6, 19.5, "unclear", "unclear: +9.0, \u22121.6 to +19.5"),
        (-2, -1, "loses", "a loss: +9.0, \u22122.0 to \u22121.0"),
        (0, 0, "unclear", "unclear: no photo differs"),
        (np.nan, np.nan, "too few photos", "too few photos"),
    ],
)
def test_an_interval_that_holds_zero_is_unclear(low: float, high: float, verdict: str, words: str) -> None:
    row = report.Row("decayed", 9, 9.0, low, high)
    assert (row.verdict, row.words) == (verdict, words)
    assert row.low == low or row._replace(cells=3).words == "too few cells"


@pytest.mark.parametrize(
    ("strategy", "frequencies"), [("infonce", "places"), ("infonce", "curve"), ("hcl", "")]
)
def test_a_variant_uses_the_curve_by_what_it_is_and_not_by_its_name(
    tmp_path: Path, strategy: str, frequencies: str
) -> None:
    settings = load("smoke")
    variant = {"strategy": strategy} | ({"frequencies": frequencies} if frequencies else {})
    training = settings.training.model_copy(update={"variants": {"infonce_frequencies": variant}})
    run = Run(settings.model_copy(update={"training": training}), tmp_path)
    assert report.uses_curve(run, "infonce_frequencies") is (frequencies == "curve")
    assert report.uses_curve(run, "semivariogram") and not report.uses_curve(run, "nearest_neighbour")


def test_the_photo_on_the_first_screen_is_the_one_of_the_median_error(page: Path) -> None:
    table = predictions().query("split == 'test' and strategy == 'semivariance_margin' and seed == 0")
    said = re.search(r"Taken near (.*?); the answer is near (.*?), ([\d,]+) km off", page.read_text("utf-8"))
    photo = table.sort_values(["error_km", "id"]).iloc[150]
    assert float(said[3].replace(",", "")) == round(photo["error_km"])
    assert f"({place_label(photo.latitude, photo.longitude)})" in said[1] and "°" in said[2]


def test_the_kept_reference_is_of_the_profile_of_today(tmp_path: Path) -> None:
    run = Run(load("quick"), tmp_path / "run")
    shutil.copytree(reference.REFERENCE / "quick", run.folder)
    table, _ = reference.compare_with_reference(run)
    assert table["reproduced"].all() and "margin_frequencies" in set(table["strategy"])


def test_a_run_that_differs_as_seeds_do_has_a_no_in_one_of_twenty_at_most(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    names = pd.MultiIndex.from_product(
        [["test", "test_blocked"], ["infonce", "a", "b"], range(3)], names=["split", "strategy", "seed"]
    )
    by_seed, alarms = drawn.normal(size=(2, 1, 3, 1)), 0  # what strategies share
    kept, run = tmp_path / "kept", Run(load("smoke", ["device=cpu"]), tmp_path / "run")
    for folder in (kept, run.folder):
        (folder / "tables").mkdir(parents=True)
        (folder / "semivariogram.json").write_text('{"nugget": 0.2, "partial_sill": 0.5, "range_km": 900.0}')
    untrained = {"split": "test", "strategy": "nearest_neighbour", "seed": 0} | dict.fromkeys(COLUMNS, 0.5)
    for _ in range(40):
        for folder in (kept, run.folder):
            values = 0.5 + 0.01 * (by_seed + drawn.normal(size=(2, 3, 3, len(COLUMNS))))
            table = pd.DataFrame(values.reshape(len(names), -1), names, COLUMNS).reset_index()
            table = pd.concat([table, pd.DataFrame([untrained])])
            table.to_csv(folder / "tables" / "accuracy.csv", index=False)
        found = reference.beside(run, kept)
        assert len(found) == 3 + 2 * (3 + 2) * len(COLUMNS)
        alarms += not found["reproduced"].all()
    assert alarms <= 5
    table[COLUMNS] += 0.2
    table.to_csv(run.table("accuracy"), index=False)
    assert not reference.beside(run, kept)["reproduced"].all()


class TestBrowser:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_answer_is_on_the_first_screen(self, browser: object, page: Path, scheme: str) -> None:
        with Visit(browser, page, ready="h1", scheme=scheme) as visit:
            box = visit.tab.locator(".answer").bounding_box()
            assert box["y"] + box["height"] <= 800
            said = visit.tab.locator(".answer").text_content()
            for part in ("distance margin, which did best", "Where on Earth?", "unclear"):
                assert part in said
            ink, ground = visit.light("body", "color"), visit.light("body", "backgroundColor")
            assert ground < 60 < 180 < ink if scheme == "dark" else ink < 80 < 200 < ground

    def test_links_open_and_pictures_show_after_the_folder_was_moved(
        self, browser: object, page: Path, tmp_path: Path
    ) -> None:
        moved = shutil.copytree(page.parent, tmp_path / "else where") / page.name
        with Visit(browser, moved, ready="h1") as visit:
            eager = "(image) => { image.loading = 'eager'; return image.decode(); }"
            visit.tab.evaluate(f"Promise.all([...document.images].map({eager}))")
            widths = visit.tab.evaluate("[...document.images].map((image) => image.naturalWidth)")
            assert widths and min(widths) > 0
            visit.tab.get_by_role("link", name="Every photo").click()
            visit.tab.wait_for_url("**/maps/predictions.html")
            assert visit.tab.title() == "there"

    def test_arrow_keys_move_along_the_curve_without_a_script(self, browser: object, page: Path) -> None:
        with Visit(browser, page, ready="h1") as visit:
            shown = visit.tab.locator("p:visible", has_text="Two training photos")
            assert "400 km" in shown.text_content()
            visit.tab.locator("#step2").press("ArrowRight")
            said, curve = shown.text_content(), fitted()
            lost = 2.0 * (1.0 - np.exp(-((5_000 / 6371.0088 / curve.length_scale_rad) ** curve.exponent)))
            assert "5,000 km" in said and f"lose by {lost:.1f} of at most 2 logits" in said
            assert visit.tab.locator("circle:visible").count() == 1

    def test_on_a_desk_no_table_is_cut(self, browser: object, page: Path) -> None:
        tables = "[...document.querySelectorAll('.tables .scroll')]"
        with Visit(browser, page, 1_200, 900, ready="h1") as visit:
            found = visit.tab.evaluate(f"{tables}.map((one) => one.scrollWidth - one.clientWidth)")
            assert len(found) >= 2 and max(found) <= 0

    def test_on_a_phone_nothing_is_wider_than_the_screen(self, browser: object, page: Path) -> None:
        with Visit(browser, page, 390, 844, ready="h1") as visit:
            assert visit.width() <= 390
            assert visit.tab.locator(".answer .verdict").bounding_box()["y"] < 400
            wide = "[...document.querySelectorAll('.scroll, .picture:not(.answer-photo) > a')].slice(0, 3)"
            assert visit.tab.evaluate(f"{wide}.every((one) => one.scrollWidth > one.clientWidth)")
            assert all(hint.is_visible() for hint in visit.tab.locator(".hint").all())
            visit.tab.evaluate("document.querySelectorAll('p').forEach((one) => one.append('a'.repeat(90)))")
            assert visit.width() <= 390, "a long name of a setting"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_report_notebooks_and_maps_can_be_read_by_everybody(
        self, browser: object, page: Path, tmp_path: Path, scheme: str
    ) -> None:
        source = "# a comment\nx = 0 + 1.5 if not None else 'text'\n@decorated\ndef f(): f'{x:.2f}'"
        text = nbformat.v4.new_markdown_cell("# 1 First\n\n$x_i$ and `code`\n## Then")
        code = nbformat.v4.new_code_cell(source)
        table = {"text/html": pd.DataFrame({"a": [1]})._repr_html_(), "text/plain": "a"}
        code.outputs = [nbformat.v4.new_output("execute_result", data=table, execution_count=1)]
        nbformat.write(nbformat.v4.new_notebook(cells=[text, code]), tmp_path / "02_second.ipynb")
        executed = pages.render(tmp_path / "02_second.ipynb", ["01_first", "02_second", "03_third"])
        photos = predictions(12).query("split == 'test' and seed == 0").assign(path="none.jpg")
        drawn = maps.save_map(maps.prediction_map(photos, photos, tmp_path), tmp_path / "map.html")
        for one, ready in ((page, "h1"), (executed, "h1"), (drawn, ".title:not(:empty)")):
            with Visit(browser, one, ready=ready, scheme=scheme) as visit:
                assert visit.faults() == []
        links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', executed.read_text("utf-8"))
        there = {"../index.html": "Report", "01_first.html": "← 01 first", "03_third.html": "03 third →"}
        assert links[:3] == links[-3:] == [*there.items()] and "<title>1 First</title>" in executed.read_text(
            "utf-8"
        )

    def test_the_check_finds_what_a_reader_cannot_use(self, browser: object, tmp_path: Path) -> None:
        bad = "<h1>a</h1><h3>b</h3><img><button></button><p style='color:#888'>c</p>"
        (tmp_path / "bad.html").write_text(bad)
        with Visit(browser, tmp_path / "bad.html", ready="h1") as visit:
            kinds = ["no text for it", "no name", "order of headings", "contrast"]
            assert [fault.partition(":")[0] for fault in visit.faults()] == kinds
