"""What a result depends on in the code: functions, and all of this project that they reach by name.

Files are read as text and nothing is imported. A function's names lead to other functions, classes and
constants, in its own module or in those that it imports, and so on. Not followed are

* registered functions (strategies, backbones): a stage names the one that it uses, so a new one remakes nothing;
* stages, that is, functions that call ``cached``: their results are inputs, known by their checksums;
* ``lib.runs`` and ``lib.settings``, which store and name. Settings that count stand in a stage's key.

Comments, docstrings and annotations do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
OURS = ("lib", "study")
WITHOUT_EFFECT = ("lib.runs", "lib.settings")
GONE = "gone"
"""Stands in for code or a package that no longer exists."""

Symbol = tuple[str, str]
"""A module and a name at its top level; an empty name: the whole module."""


def named(function: Callable) -> str:
    """``module:name`` of a function or class, as receipts have it."""
    return f"{function.__module__}:{function.__qualname__}"


def code_of(functions: Iterable[Callable]) -> dict[str, str]:
    """SHA-256 of the code that each of ``functions`` reaches, by its name."""
    found = {name: (function, digest(name)) for function in functions if (name := named(function))}
    return {  # one that is gone stands in a script or a notebook
        name: hashlib.sha256(inspect.getsource(function).encode()).hexdigest() if code == GONE else code
        for name, (function, code) in found.items()
    }


@lru_cache(maxsize=1_024)
def digest(name: str, project: Path = PROJECT) -> str:
    """SHA-256 of the code that ``module:name`` reaches, itself included; ``GONE`` where there is none."""
    module, _, symbol = name.partition(":")
    if (found := _module(module, project)) is None or symbol not in found.defined:
        return GONE
    return _digest(reached((module, symbol), project), project)


def digest_of_source(source: str, project: Path = PROJECT) -> str:
    """SHA-256 of the code of this project that the statements ``source`` of a notebook reach."""
    found = set()
    for one in _names(_Bare().visit(ast.parse(source)), _Module("", {}, {}), "", project):
        found |= {one for one in reached(one, project) if not _is_stage(*one, project)}
    return _digest(found, project)


def digest_of_text(text: str) -> str:
    """SHA-256 of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(symbols: Iterable[Symbol], project: Path) -> str:
    ours = sorted((module, name) for module, name in symbols if name and _module(module, project))
    texts = [f"{module} {name} {_text(module, name, project)}" for module, name in ours]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def packages_of(names: Iterable[str], project: Path = PROJECT) -> dict[str, str]:
    """Version of each package that the code of ``names`` (``module:name``) reaches."""
    symbols = set().union(*(reached(tuple(name.split(":", 1)), project) for name in names))
    tops = {module.partition(".")[0] for module, _ in symbols} - {*OURS, *sys.stdlib_module_names}
    return {
        owner: version(owner) for owner in sorted({one for top in tops for one in _owners().get(top, ())})
    }


@lru_cache(maxsize=1)
def _owners() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@lru_cache(maxsize=256)
def version(package: str) -> str:
    """Installed version of ``package``; ``GONE`` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return GONE


@lru_cache(maxsize=1_024)
def reached(start: Symbol, project: Path = PROJECT) -> frozenset[Symbol]:
    """``start`` and all that it reaches by name; of other packages the first step."""
    seen, waiting = set(), [start]
    while waiting:
        symbol = waiting.pop()
        if symbol in seen or symbol[0].startswith(WITHOUT_EFFECT):
            continue
        if symbol == start or not _is_stage(*symbol, project):
            seen.add(symbol)
            waiting += _next(*symbol, project)
    return frozenset(seen)


class _Module(NamedTuple):
    """The top level of a file: ``defined`` name -> its statements, ``imported`` name -> what it stands for."""

    package: str
    defined: dict[str, list[ast.stmt]]
    imported: dict[str, Symbol]


@lru_cache(maxsize=1_024)
def _module(name: str, project: Path) -> _Module | None:
    """The module ``name`` of this project, without docstrings and annotations; None for all others."""
    base = project.joinpath(*name.split("."))
    paths = (base.with_suffix(".py"), base / "__init__.py") if name.partition(".")[0] in OURS else ()
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        return None
    body = _Bare().visit(ast.parse(path.read_text(encoding="utf-8"))).body
    package, defined = name if path.name == "__init__.py" else name.rpartition(".")[0], {}
    for node in body:
        targets = ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ()
        names = {one.id for one in targets if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        for one in {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else names:
            defined.setdefault(one, []).append(node)
    return _Module(package, defined, _imports(body, package, project))


class _Bare(ast.NodeTransformer):
    """A syntax tree without docstrings and annotations."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _imports(nodes: Iterable[ast.AST], package: str, project: Path) -> dict[str, Symbol]:
    """What the imports among ``nodes`` bind; relative ones are resolved from ``package``."""
    bound = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.partition(".")[0]] = (alias.name.partition(".")[0], "")
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                bound[alias.asname or alias.name] = (
                    (inner, "") if _module(inner, project) else (source, alias.name)
                )
    return bound


def _is_stage(module: str, name: str, project: Path) -> bool:
    nodes = found.defined.get(name, []) if (found := _module(module, project)) else []
    return any(isinstance(node, ast.FunctionDef) and "cached" in _loaded(node) for node in nodes)


def _loaded(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _next(module: str, name: str, project: Path) -> Iterator[Symbol]:
    """What a symbol's statements name, one step on."""
    found = _module(module, project)
    if found is None:
        return
    if not name:
        yield from ((module, one) for one in found.defined)
    elif name in found.imported and name not in found.defined:  # a name that is only handed on
        yield found.imported[name]
    for node in found.defined.get(name, []):
        yield from _names(node, found, module, project)


def _names(node: ast.AST, found: _Module, module: str, project: Path) -> Iterator[Symbol]:
    """Symbols that ``node`` names: of a module that it takes something from, what it takes."""
    inner = _imports(ast.walk(node), found.package, project)
    bound = found.imported | inner
    of_modules = [
        one for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and bound.get(one.value.id, ("", "it"))[1] == ""
    ]  # fmt: skip
    for one in of_modules:
        source = bound[one.value.id][0]
        taken = f"{source}.{one.attr}"
        yield (taken, "") if _module(taken, project) else (source, one.attr)
    counted = {id(one.value) for one in of_modules}
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and id(one) not in counted:
            if one.id in bound:
                yield bound[one.id]
            elif one.id in found.defined:
                yield module, one.id


def _text(module: str, name: str, project: Path) -> str:
    return "".join(map(ast.dump, _module(module, project).defined.get(name, [])))
