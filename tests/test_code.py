"""What a stage depends on in the code: exactly what its functions reach by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.settings import PROJECT

NAMES = {
    "features": "lib.data.features:_extract",
    "curve": "lib.train.curve:fit_run",
    "training": "lib.train.training:make",
    "decayed": "lib.method.negatives:decayed",
    "infonce": "lib.method.negatives:infonce",
    "evaluation": "lib.evaluate.evaluation:evaluate",
}
STRATEGY = """

@strategy("new", "of a test", "beta")
def new(pairs: Pairs) -> Reweighting:
    return Reweighting(log_weight=pairs.beta * pairs.residual)
"""
BACKBONE = """

def load_new(name: str, settings: BackboneSettings) -> Backbone:
    raise BundleError(name)


REGISTRY |= {"new": Entry("of a test", load_new)}
"""


def digests(tree: Path) -> dict[str, str]:
    """The digest of each of ``NAMES``, as a process of its own takes it from ``tree``."""
    program = (
        f"from lib.runs.code import code_digest\nfor name in {list(NAMES.values())}: print(code_digest(name))"
    )
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return dict(zip(NAMES, done.stdout.split(), strict=True))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in ("lib", "study", "notebooks"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, str]:
    found = digests(tree)
    assert "gone" not in found.values() and len(set(found.values())) == len(NAMES)
    return found


CHANGES: dict[str, tuple[list[tuple[str, str | None, str]], set[str]]] = {
    "strategy": (
        [("lib/method/negatives.py", "look_alike * (1.0 - pairs.correlation)", "look_alike")], {"decayed"}
    ),
    "constant": (
        [("lib/method/model.py", "INITIAL_TEMPERATURE = 0.07", "INITIAL_TEMPERATURE = 0.08")],
        {"training", "evaluation"},
    ),
    "what is imported relatively": (
        [("lib/method/negatives.py", ".sub_(1.0)", ".sub_(2.0)")], {"training", "evaluation"}
    ),
    "the fit": (
        [("lib/method/fitting.py", "1.0 - squares / max", "1.0 + squares / max")],
        {"curve"},
    ),
    "what nothing depends on": (
        [
            ("lib/method/negatives.py", None, STRATEGY), ("lib/data/backbones.py", None, BACKBONE),
            ("lib/data/photos.py", "def open_photo(", "def renamed(): ...\n\n\ndef open_photo("),
            ("lib/runs/run.py", "RESULTS = ", "MORE = 1\nRESULTS = "),
            ("lib/method/loss.py", "\n    logits = _at_least", "\n    # why\n    logits = _at_least"),
        ],
        set(),
    ),
}  # fmt: skip
"""Edits of files, old text (None: at the end) and new; and whose digests change."""


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_makes_exactly_what_reaches_it_anew(tree: Path, before: dict[str, str], kind: str) -> None:
    edits, changed = CHANGES[kind]
    kept = {tree / file: (tree / file).read_text() for file, *_ in edits}
    for file, old, new in edits:
        content = kept[tree / file]
        assert old is None or old in content
        (tree / file).write_text(content + new if old is None else content.replace(old, new))
    try:
        after = digests(tree)
    finally:
        for path, content in kept.items():
            path.write_text(content)
    assert {name for name in NAMES if after[name] != before[name]} == changed


@pytest.mark.parametrize(
    "name", ["nosuch:f", "lib.nosuch:f", "lib.method.model:nosuch", "lib.method.nosuch:f"]
)
def test_code_that_is_gone_is_called_gone(name: str) -> None:
    from lib.runs.code import GONE, code_digest

    assert code_digest(name) == GONE
