"""The house rules that a reader relies on: arrows run one way, functions stay short, the public is documented."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lib

FOLDER = Path(lib.__file__).parent
ORDER = re.search(r"to the top: (.*?)\.\n", lib.__doc__, re.DOTALL)[1].replace("\n", " ").split(", ")
MODULES = sorted(path for path in FOLDER.rglob("*.py") if path.name != "__init__.py" or path.parent != FOLDER)


def room(path):
    """The name by which ``lib.__doc__`` knows a module; data sets share one."""
    return path.relative_to(FOLDER).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            yield node.module.split(".")[1]


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_every_module_has_its_place_in_the_order():
    assert {room(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FOLDER)))
class TestEachModule:
    def test_imports_only_what_stands_before_it(self, path):
        allowed = set(ORDER[: ORDER.index(room(path)) + (room(path) == "datasets")])
        assert set(imported(path)) <= allowed

    def test_has_no_function_beyond_60_lines(self, path):
        long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
        assert not {name: lines for name, lines in long.items() if lines > 60}

    def test_documents_its_public_functions_and_types_their_arguments(self, path):
        for node in functions(path):
            if node.name.startswith("_") or node.name in {"make", "register", "draw", "encode", "preprocess", "normalise", "imported", "formula", "ask", "render"}:
                continue
            assert ast.get_docstring(node), node.name
            arguments = [one for one in node.args.args + node.args.kwonlyargs if one.arg not in {"self", "cls"}]
            assert all(one.annotation for one in arguments), node.name


LAZY = ["transformers", "timm", "torchvision", "sklearn", "huggingface_hub", "geoclip", "numba", "papermill", "nbconvert", "reverse_geocoder"]
"""Packages that take seconds to import, and are imported where they are needed only."""


def loaded_after(statements):
    """The modules of LAZY, and torch, numpy, pandas, that a fresh Python has loaded after ``statements``."""
    names = [*LAZY, "torch", "numpy", "pandas"]
    program = f"{statements}\nimport sys\nprint(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_lib_loads_nothing():
    assert loaded_after("import lib") == set()


def test_what_the_notebooks_import_loads_no_slow_package_before_it_is_needed():
    lines = set()
    for path in sorted((FOLDER.parent / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines |= {line.strip() for cell in cells for line in cell["source"] if line.startswith(("from lib", "import "))}
    assert len(lines) > 10
    loaded = loaded_after("\n".join(sorted(lines)))
    assert "torch" in loaded and not loaded.intersection(LAZY)
