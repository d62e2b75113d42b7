"""The pages say what is so: links lead somewhere, formulas parse, commands are taken, how-tos run, the reference is fresh."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from latex2mathml.converter import convert
from PIL import Image

from lib import pipeline, settings
from lib.data.sphere import uniform_on_sphere
from lib.settings import PROJECT

DOCS = PROJECT / "docs"
PAGES = sorted([PROJECT / "README.md", PROJECT / "data" / "README.md", *DOCS.rglob("*.md")])
HOWTOS = {"howto-strategy": "lib/negatives.py", "howto-backbone": "lib/backbones.py", "howto-data-set": "my_data_set.py"}
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(path: Path) -> list[tuple[str, str]]:
    """Title (or empty) and text of every block of code."""
    return [(title[1] if (title := re.search(r'title="([^"]+)"', found["info"])) else "", found["text"]) for found in FENCE.finditer(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=name)
class TestEachPage:
    def test_every_link_and_picture_leads_somewhere(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target

    def test_every_formula_parses(self, page):
        text = page.read_text(encoding="utf-8")
        displayed = [found["text"] for found in FENCE.finditer(text) if found["info"] == "math"]
        inline = re.findall(r"\$([^$\n]+)\$", prose(page))
        for formula in displayed + inline:
            assert "<math" in convert(formula), formula
            assert formula.count("{") == formula.count("}") and formula.count(r"\left") == formula.count(r"\right"), formula
        assert prose(page).count("$") % 2 == 0

    def test_its_fences_close_and_its_tables_have_one_width(self, page):
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0
        for table in re.findall(r"(?:^\|.*\n)+", FENCE.sub("", text), re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) for line in table.splitlines()}
            assert len(widths) == 1, table.splitlines()[0]

    def test_every_command_is_one_that_the_program_takes(self, page, tmp_path, monkeypatch):
        for title, text in blocks(page):
            if title.endswith(".yaml"):
                (tmp_path / title).write_text(text)
        monkeypatch.chdir(tmp_path)
        for line in (line for _, text in blocks(page) for line in text.splitlines()):
            found = re.match(r"(?:NPROC=\d+ )?\./run_all\.sh\b(.*)", line)
            if not found:
                continue
            options = pipeline.parse(found[1].partition("#")[0].split())
            settings.load(options.profile, options.set)

    def test_every_profile_shown_is_valid(self, page, tmp_path):
        for title, text in blocks(page):
            if title.endswith(".yaml"):
                (tmp_path / title).write_text(text)
                assert settings.load(tmp_path / title).model_dump()["training"]["strategies"] == yaml.safe_load(text)["training"]["strategies"]


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [PROJECT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        linked = [(page.parent / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]
        waiting += [path for path in linked if path.suffix == ".md" and path not in seen]
    assert set(PAGES) <= seen


def test_the_readme_keeps_each_section_within_a_screen():
    sections = re.split(r"^## ", (PROJECT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not {section.partition("\n")[0]: section.count("\n") for section in sections if section.count("\n") > 42}
    assert "![" in sections[0] and "./run_all.sh" in sections[0] and "./run_tests.sh" in sections[0]


def test_the_reference_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [path.name for path, text in generate.pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert not stale, "run python docs/generate.py"
    assert set((DOCS / "reference").glob("*.md")) == {path for path in generate.pages() if path.parent.name == "reference"}


# --- The how-tos, executed in a copy of the project ----------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the code of all three how-tos, and a folder of photos named by their places."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copytree(PROJECT / "lib", copy / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "notebooks" / "profiles", copy / "notebooks" / "profiles")
    shutil.copy(PROJECT / "requirements.txt", copy)
    for howto, file in HOWTOS.items():
        code = next(text for title, text in blocks(DOCS / f"{howto}.md") if title)
        before = (copy / file).read_text() if (copy / file).exists() else ""
        end = before.index("def contrastive_loss") if howto == "howto-strategy" else len(before)
        (copy / file).write_text(f"{before[:end]}{code}\n\n{before[end:]}")
    (copy / "photos").mkdir()
    for number, (latitude, longitude) in enumerate(uniform_on_sphere(300, np.random.default_rng(0), 70.0)):
        colour = (int(128 + latitude), int(128 + longitude / 2), 90)
        Image.new("RGB", (24, 16), colour).save(copy / "photos" / f"{latitude:.4f}_{longitude:.4f}_{number}.jpg")
    return copy


def test_each_howto_is_one_file(extended):
    for howto, file in HOWTOS.items():
        titles = [title for title, _ in blocks(DOCS / f"{howto}.md") if title]
        assert titles == [file]
    changed = {name for name in ("lib/negatives.py", "lib/backbones.py") if (extended / name).read_text() != (PROJECT / name).read_text()}
    same = [path for path in (extended / "lib").rglob("*.py") if path.read_text() == (PROJECT / path.relative_to(extended)).read_text()]
    assert len(same) == len(list((extended / "lib").rglob("*.py"))) - len(changed) and len(changed) == 2


def test_the_howtos_data_set_backbone_and_strategy_go_through_a_training(extended):
    asked = ["dataset=script", "data.file=my_data_set.py", "data.root=photos", "data.options.seed=7", "backbone=thumbnail", "study=null", "device=cpu"]
    asked += ["training.strategies=infonce,near_down", "training.alpha=4", "training.epochs=1", "training.seeds=0", "training.queue_size=0", "semivariogram.lag_width_rad=0.1"]
    command = [sys.executable, "-m", "lib.stages", "smoke", str(extended / "results" / "mine"), *asked]
    import os

    done = subprocess.run(command, cwd=extended, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(extended)})
    assert done.returncode == 0, done.stderr[-3_000:]
    folder = extended / "results" / "mine"
    manifest = pd.read_parquet(folder / "manifest.parquet")
    assert set(manifest["split"]) == {"train", "validation", "test", "test_blocked"} and len(manifest) == 300
    assert np.load(folder / "features" / "features.npy", mmap_mode="r").shape == (300, 192)
    history = pd.read_csv(folder / "history" / "near_down_seed0.csv")
    assert history["damped"].iloc[-1] > 0.99 and history["emphasized"].iloc[-1] == 0.0
