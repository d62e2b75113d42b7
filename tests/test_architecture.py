"""The house rules: arrows run one way, functions stay short, the public is documented."""

import ast
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import python

import lib

PROJECT = Path(lib.__file__).parent.parent
ROOMS = ["method", "settings", "runs", "data", "train", "evaluate", "show", "predict", "programs", "study"]
"""From the bottom to the top: a room imports only from rooms before it. Programs stand in lib/ itself."""
MODULES = sorted([*(PROJECT / "lib").rglob("*.py"), *(PROJECT / "study").rglob("*.py")])


def room(name):
    """The room of the module ``name``, such as lib.data.photos."""
    package, *rest = name.split(".")
    if package == "study":
        return "study"
    return rest[0] if rest and rest[0] in ROOMS else "programs"


def name_of(path):
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"lib", "study"}:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in {"lib", "study"})


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def public(path):
    """Functions and methods that others can call, without those that begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                yield one


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROJECT)))
class TestEachModule:
    def test_imports_only_from_rooms_below_its_own(self, path):
        allowed = ROOMS[: ROOMS.index(room(name_of(path))) + 1]
        assert not [one for one in imported(path) if room(one) not in allowed]

    def test_has_no_function_beyond_60_lines(self, path):
        long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
        assert not {name: lines for name, lines in long.items() if lines > 60}

    def test_documents_its_public_functions_and_types_their_arguments(self, path):
        for node in public(path):
            assert ast.get_docstring(node), node.name
            arguments = [
                one for one in node.args.args + node.args.kwonlyargs if one.arg not in {"self", "cls"}
            ]
            assert all(one.annotation for one in arguments), node.name


LAZY = [
    "transformers",
    "torchvision",
    "sklearn",
    "huggingface_hub",
    "geoclip",
    "numba",
    "papermill",
    "nbconvert",
]
"""Packages that take seconds to import, and are imported where they are needed only."""


def loaded_after(statements):
    """The modules of LAZY, and torch, numpy, pandas, that a fresh Python has loaded after ``statements``."""
    names = [*LAZY, "torch", "numpy", "pandas"]
    program = f"{statements}\nimport sys\nprint(*[name for name in {names} if name in sys.modules])"
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_method_alone_is_what_pip_installs_and_it_needs_neither_lib_nor_pandas(tmp_path):
    paths = sorted((PROJECT / "lib" / "method").glob("*.py"))
    assert len(paths) > 8 and not [one for path in paths for one in imported(path)]  # relative imports alone
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "lib" / "method", tmp_path / "lib" / "method")
    build = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    done = python("-c", f"import os; os.chdir({str(tmp_path)!r}); {build}")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    packed = {name.partition("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert packed == {"semivariogram_loss"}
    loaded = loaded_after(f"""import sys; sys.path.insert(0, {str(wheel)!r}); sys.modules["lib"] = None
import torch; from semivariogram_loss import SemivariogramLoss
loss = SemivariogramLoss(None, strategy="constant_offset", beta=2.0)
value = loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 4))
assert value.isclose(torch.tensor(2.0).exp().add(1.0).log())""")
    assert "torch" in loaded and not loaded & {*LAZY, "pandas"}


def test_importing_lib_loads_nothing():
    assert loaded_after("import lib") == set()


def test_what_the_notebooks_import_loads_no_slow_package_before_it_is_needed():
    lines = set()
    for path in sorted([*(PROJECT / "notebooks").glob("*.ipynb"), *(PROJECT / "study").glob("*.ipynb")]):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines |= {
            line.strip()
            for cell in cells
            for line in cell["source"]
            if line.startswith(("from lib", "from study", "import "))
        }
    assert len(lines) > 10
    lines |= {"from lib.method import model; model.GeoCLIP(4)"}
    loaded = loaded_after("\n".join(sorted(lines)))
    assert "torch" in loaded and not loaded.intersection(LAZY)
