"""The house rules that a reader relies on: arrows run one way, functions stay short, the public is documented."""

import ast
import re
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
