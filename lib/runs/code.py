"""What a result depends on in the code: a function, and all of this project that it reaches by name.

The files are read as text and nothing is imported. From a function its names lead to other functions, classes
and constants, in its own module or in those that it imports, and so on. Comments, docstrings and annotations
do not count. What is put into a registry by a decorator is reached by no name, so that a new strategy does
not make the trainings of the others anew: whoever looks one up adds it to what a stage depends on.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

PACKAGES = ("lib", "study")
WITHOUT_EFFECT = (
    "lib.settings",
    "lib.method.errors",
    "lib.runs.run",
    "lib.runs.files",
    "lib.runs.locks",
    "lib.runs.receipts",
    "lib.runs.provenance",
    "lib.runs.code",
)
"""Modules that store and name results but do not make them; what of the settings a stage depends on, it says
itself."""
GONE = "gone"
"""Stands in for code or a package that no longer exists."""

Symbol = tuple[str, str]
"""A module, and the name of something at its top level; an empty name: all of the module."""


def named(function: Callable) -> str:
    """``module:name`` of a function or class, as receipts have it."""
    return f"{function.__module__}:{function.__qualname__}"


@lru_cache(maxsize=256)
def code_digest(name: str) -> str:
    """SHA-256 of the code that ``name`` (``module:name``) reaches, itself included; ``GONE`` where there is
    no such thing."""
    module, _, symbol = name.partition(":")
    if (found := _module(module)) is None or symbol not in found.defined:
        return GONE
    parts = {f"{one[0]}:{one[1]}": _text(one) for one in reached((module, symbol))}
    return hashlib.sha256("\n".join(f"{key} {parts[key]}" for key in sorted(parts)).encode()).hexdigest()


def reached(start: Symbol) -> set[Symbol]:
    """``start`` and everything of ``PACKAGES`` that it reaches by name, but for the modules
    ``WITHOUT_EFFECT``."""
    seen, waiting = set(), [start]
    while waiting:
        symbol = waiting.pop()
        if symbol in seen or symbol[0] in WITHOUT_EFFECT or _module(symbol[0]) is None:
            continue
        seen.add(symbol)
        waiting += _names_of(symbol)
    return {one for one in seen if one[1]}


class _Module:
    """The top level of a file: ``defined`` name -> its statements, ``imported`` name -> what it stands
    for."""

    def __init__(self, name: str, path: Path) -> None:
        self.defined: dict[str, list[ast.stmt]] = {}
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        body = ast.parse(path.read_text(encoding="utf-8")).body
        self.imported = _imports(body, self.package)
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.defined.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in (
                    part for one in targets for part in ast.walk(one) if isinstance(part, ast.Name)
                ):
                    self.defined.setdefault(target.id, []).append(node)


@lru_cache(maxsize=256)
def _module(name: str) -> _Module | None:
    if name.partition(".")[0] not in PACKAGES:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package around it is gone
        return None
    return _Module(name, Path(spec.origin)) if spec and spec.origin else None


def _imports(body: list[ast.stmt], package: str) -> dict[str, Symbol]:
    """Name -> (module, name in it) of the statements ``from … import …`` among ``body``.

    Relative imports are resolved from ``package``.
    """
    found = {}
    for node in body:
        if not isinstance(node, ast.ImportFrom):
            continue
        source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        if source.partition(".")[0] in PACKAGES:
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found[alias.asname or alias.name] = (inner, "") if _module(inner) else (source, alias.name)
    return found


def _names_of(symbol: Symbol) -> Iterator[Symbol]:
    """What the statements of ``symbol`` name, one step on."""
    module = _module(symbol[0])
    if not symbol[1]:
        yield from ((symbol[0], name) for name in module.defined)
        return
    if symbol[1] in module.imported:  # a name that is only handed on
        yield module.imported[symbol[1]]
        return
    for node in module.defined.get(symbol[1], []):
        inner = _imports([one for one in ast.walk(node) if isinstance(one, ast.ImportFrom)], module.package)
        yield from _named_in(node, symbol[0], module, module.imported | inner)


def _named_in(node: ast.AST, name: str, module: _Module, imported: dict[str, Symbol]) -> Iterator[Symbol]:
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and imported.get(node.value.id, ("", "x"))[1] == ""
    ):
        inner = imported[node.value.id][0]  # of a module only what is taken from it
        yield (f"{inner}.{node.attr}", "") if _module(f"{inner}.{node.attr}") else (inner, node.attr)
        return
    if isinstance(node, ast.Name):
        if node.id in imported:
            yield imported[node.id]
        elif node.id in module.defined:
            yield name, node.id
        return
    for field, value in ast.iter_fields(node):
        if field not in {"annotation", "returns"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _named_in(child, name, module, imported)


def _text(symbol: Symbol) -> str:
    """The syntax trees of a symbol's statements, without docstrings."""
    return "".join(
        ast.dump(_without_docstrings(node)) for node in _module(symbol[0]).defined.get(symbol[1], [])
    )


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for one in ast.walk(node):
        body = getattr(one, "body", None)
        if isinstance(body, list):
            one.body = [line for line in body if not (isinstance(line, ast.Expr) and _is_text(line.value))]
    return node


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
