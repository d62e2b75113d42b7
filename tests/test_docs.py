"""What the pages say is true: links, formulas, commands, how-tos that run, a reference that is fresh."""

import os
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from latex2mathml.converter import convert
from PIL import Image

from lib import pipeline, settings
from lib.data.sphere import uniform_on_sphere
from lib.method import negatives
from lib.settings import PROJECT

DOCS = PROJECT / "docs"
PAGES = sorted([PROJECT / "README.md", PROJECT / "data" / "README.md", *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HOWTOS = {
    "howto-strategy": "lib/method/negatives.py",
    "howto-backbone": "lib/data/backbones.py",
    "howto-data-set": "my_data_set.py",
}
"""Page -> the one file that it extends or adds."""


def read(path):
    return path.read_text(encoding="utf-8")


def prose(path):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", read(path)))


def anchors(path):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(path):
    """Title (or empty) and text of every block of code."""
    for found in FENCE.finditer(read(path)):
        title = re.search(r'title="([^"]+)"', found["info"])
        yield title[1] if title else "", found["text"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
class TestEachPage:
    def test_every_link_and_picture_leads_somewhere(self, page):
        for target in (one for one in LINK.findall(prose(page)) if not re.match(r"https?://", one)):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target

    def test_every_formula_parses(self, page):
        displayed = [found["text"] for found in FENCE.finditer(read(page)) if found["info"] == "math"]
        for formula in displayed + re.findall(r"\$([^$\n]+)\$", prose(page)):
            assert "<math" in convert(formula), formula
            assert formula.count("{") == formula.count("}"), formula
            assert formula.count(r"\left") == formula.count(r"\right"), formula
        assert prose(page).count("$") % 2 == 0

    def test_its_fences_close_and_its_tables_have_one_width(self, page):
        text = read(page)
        assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
        for rows in re.findall(r"(?:^\|.*\n)+", FENCE.sub("", text), re.MULTILINE):
            plain = [re.sub(r"`[^`]*`", "", row) for row in rows.splitlines()]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in plain}) == 1, plain[0]

    def test_every_command_and_profile_is_one_that_the_program_takes(self, page, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(negatives.REGISTRY, "near_down", negatives.get("decayed"))  # one to be written
        for title, text in blocks(page):
            if title.endswith(".yaml"):
                (tmp_path / title).write_text(text)
                loaded = settings.load(tmp_path / title).training.strategies
                assert loaded == yaml.safe_load(text)["training"]["strategies"]
        commands = (text.replace("\\\n", "") for _, text in blocks(page))
        for line in (line for text in commands for line in text.splitlines()):
            if found := re.match(r"(?:NPROC=\d+ )?\./run_all\.sh\b(.*)", line):
                words = found[1].partition("#")[0].split()
                options = pipeline.parse([] if words == ["--lab"] else words)  # run_all.sh handles --lab
                settings.load(options.profile, options.set)

    def test_every_file_of_the_code_that_it_names_is_there(self, page):
        named = re.findall(r"`((?:lib|study|tests|docs|notebooks)/[\w./]+\.\w+)`", FENCE.sub("", read(page)))
        assert [path for path in named if not (PROJECT / path).exists()] == []


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [PROJECT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = [target.partition("#")[0] for target in LINK.findall(prose(page)) if "://" not in target]
        linked = [(page.parent / target).resolve() for target in targets]
        waiting += [path for path in linked if path.suffix == ".md" and path not in seen]
    assert set(PAGES) <= seen


def test_the_readme_begins_with_a_picture_and_the_two_commands():
    first = read(PROJECT / "README.md").partition("\n## ")[0]
    assert "![" in first and "./run_all.sh" in first and "./run_tests.sh" in first


def test_the_reference_is_what_the_code_says():
    pages = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    stale = [path.name for path, text in pages.items() if not path.exists() or read(path) != text]
    assert not stale, "run python docs/generate.py"
    assert set((DOCS / "reference").glob("*.md")) <= set(pages)


def test_a_table_that_was_empty_takes_nothing_of_what_follows(tmp_path):
    mark, end = "<!-- table the_curve, made by docs/generate.py -->", "<!-- end -->"
    (tmp_path / "page.md").write_text(f"{mark}\n{end}\n\nprose\n\n{mark}\nold\n{end}\n")
    filled = runpy.run_path(str(DOCS / "generate.py"))["filled"](tmp_path / "page.md")
    assert "prose" in filled and filled.count(end) == 2 and "old" not in filled


# --- The code of the how-tos and of the loss's page, executed ----------------------------------------------


def python(folder, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(folder)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the code of the how-tos, and a folder of photos named by their places."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "lib", copy / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "notebooks" / "profiles", copy / "notebooks" / "profiles")
    shutil.copy(PROJECT / "requirements.txt", copy)
    for howto, file in HOWTOS.items():
        ((title, code),) = [one for one in blocks(DOCS / f"{howto}.md") if one[0]]
        assert title == file  # a how-to is one file
        before = f"{read(copy / file)}\n\n" if (copy / file).exists() else ""
        (copy / file).write_text(before + code)
    (copy / "photos").mkdir()
    for number, (latitude, longitude) in enumerate(uniform_on_sphere(300, np.random.default_rng(0), 70.0)):
        colour = (int(128 + latitude), int(128 + longitude / 2), 90)
        path = copy / "photos" / f"{latitude:.4f}_{longitude:.4f}_{number}.jpg"
        Image.new("RGB", (24, 16), colour).save(path)
    return copy


def test_the_howtos_data_set_backbone_and_strategy_go_through_a_training(extended):
    python(extended, "my_data_set.py", "photos", "places.csv")
    asked = [
        "dataset=folder", "dataset.root=photos", "dataset.csv=places.csv", "backbone=thumbnail",
        "device=cpu", "training.strategies=infonce,near_down", "training.alpha=4", "training.epochs=1",
        "training.seeds=0", "training.queue_size=0", "semivariogram.lag_width_rad=0.1",
        "evaluation.splits=test,test_blocked",
    ]  # fmt: skip
    python(extended, "-m", "lib.stages", "smoke", str(extended / "results" / "mine"), *asked)
    folder = extended / "results" / "mine"
    splits = pd.read_parquet(folder / "manifest.parquet")["split"]
    assert set(splits) == {"train", "validation", "test", "test_blocked"} and len(splits) == 300
    assert np.load(folder / "features" / "features.npy", mmap_mode="r").shape == (300, 192)
    history = pd.read_csv(folder / "history" / "near_down_seed0.csv")
    assert history["damped"].iloc[-1] > 0.99 and history["emphasized"].iloc[-1] == 0.0


def test_the_loss_of_the_page_runs_in_both_training_loops(tmp_path):
    code = [text for title, text in blocks(DOCS / "loss.md") if title]
    assert len(code) == 3
    shutil.copytree(PROJECT / "lib" / "method", tmp_path / "lib" / "method")  # nothing else of lib is needed
    (tmp_path / "loops.py").write_text("\n".join(code))
    said = python(tmp_path, "loops.py")
    assert "GeoCLIP: loss" in said and "two towers: loss" in said
