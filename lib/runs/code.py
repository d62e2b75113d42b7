"""What a result depends on in the code: functions, and all of this project that they reach by name.

Files are read as text and nothing is imported. A function's names lead to other functions, classes and
constants, in its own module or in those that it imports, and so on. Not followed are

* registered functions (strategies, backbones): a stage names the one that it uses, so a new one remakes none;
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
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lib.method.errors import BundleError

PROJECT = Path(__file__).resolve().parents[2]
OURS = ("lib", "study")
WITHOUT_EFFECT = ("lib.runs", "lib.settings")
_STARTED = time.time()
GONE = "gone"
"""Stands in for code or a package that no longer exists."""
Symbol = tuple[str, str]
"""A module and a name at its top level; an empty name: the whole module."""


def named(function: Callable) -> str:
    """``module:name`` of a function or class, as receipts have it."""
    return f"{function.__module__}:{function.__qualname__}"


def code_of(functions: Iterable[Callable]) -> dict[str, str]:
    """SHA-256 of the code that each of ``functions`` reaches, by its name."""
    found = {named(one): (one, digest(named(one))) for one in functions}
    return {  # a function that is in no file of ours is of a script or a notebook
        name: sha256(inspect.getsource(function)) if code == GONE else code
        for name, (function, code) in found.items()
    }


@lru_cache(maxsize=1_024)
def digest(name: str) -> str:
    """SHA-256 of the code that ``module:name`` reaches, itself included; ``GONE`` where there is none."""
    module, _, symbol = name.partition(":")
    there = _module(module)
    return _digest(reached((module, symbol))) if there and symbol in there.defined else GONE


def needs_of_source(source: str) -> dict[str, object]:
    """Digest of the code that the statements ``source`` of a notebook reach, and the packages used there."""
    with suppress(SyntaxError):  # of IPython's own, such as !ls
        starts = set(_names(_parsed(source), "", _Module("", {}, {})))
        symbols = set().union(*(reached(one) for one in starts if not _is_stage(*one)))
        return {"reached": _digest(symbols), "packages": _versions(symbols)}
    return {"reached": GONE}


def sha256(text: str) -> str:
    """SHA-256 of ``text``, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(symbols: Iterable[Symbol]) -> str:
    ours = sorted((module, name) for module, name in symbols if name and _module(module))
    return sha256("\n".join(f"{one} {''.join(map(ast.dump, _statements(*one)))}" for one in ours))


def packages_of(names: Iterable[str]) -> dict[str, str]:
    """Version of each package that the code of ``names`` (``module:name``) uses."""
    return _versions(set().union(*(reached(tuple(name.split(":", 1))) for name in names)))


def _versions(symbols: Iterable[Symbol]) -> dict[str, str]:
    owners = set()
    for symbol in symbols:
        top, *parts = ".".join(symbol).split(".")
        there = [] if top in OURS or top in sys.stdlib_module_names else _owners().get(top, [])
        owners |= {one for one in there if one.replace("-", "_") in parts} or set(there)
    return {owner: version(owner) for owner in sorted(owners)}


@lru_cache(maxsize=1)
def _owners() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@lru_cache(maxsize=256)
def version(package: str) -> str:
    """Installed version of ``package``; ``GONE`` where it is not installed.

    Raises:
        BundleError: imports would take a copy of it from elsewhere, which may be of another version.
    """
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return GONE
    home = Path(str(found.locate_file(""))).resolve()
    for top in (one for one, owners in _owners().items() if package in owners):
        spec = importlib.util.find_spec(top)
        folders = spec.submodule_search_locations or [str(Path(spec.origin or home).parent)] if spec else []
        if folders and not any(Path(one).resolve().is_relative_to(home) for one in folders):
            elsewhere = (
                f"{package} {found.version} lies in {home}, but Python imports {spec.origin or folders[0]}"
            )
            raise BundleError(f"{elsewhere}: take its folder off PYTHONPATH, or rename it")
    return found.version


@lru_cache(maxsize=1_024)
def reached(start: Symbol) -> frozenset[Symbol]:
    """``start`` and all that it reaches by name; of other packages the first step."""
    seen, waiting = set(), [start]
    while waiting:
        symbol = waiting.pop()
        if symbol in seen or symbol[0].startswith(WITHOUT_EFFECT):
            continue
        if symbol == start or not _is_stage(*symbol):
            seen.add(symbol)
            waiting += _next(*symbol)
    return frozenset(seen)


class _Module(NamedTuple):
    """The top level of a file: ``defined`` name -> statements, ``imported`` name -> what it stands for."""

    package: str
    defined: dict[str, list[ast.stmt]]
    imported: dict[str, Symbol]


@lru_cache(maxsize=1_024)
def _module(name: str) -> _Module | None:
    """The module ``name`` of this project, without docstrings and annotations; None for all others."""
    base = PROJECT.joinpath(*name.split("."))
    paths = (base.with_suffix(".py"), base / "__init__.py") if name.partition(".")[0] in OURS else ()
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        return None
    changed = path.stat().st_mtime  # in the future: by another clock, such as that of a network disk
    if _STARTED < changed <= time.time() and getattr(sys.modules.get(name), "__file__", "") == str(path):
        raise BundleError(f"{path}: was changed after this process began; start it (or the kernel) again")
    body = _parsed(path.read_text(encoding="utf-8")).body
    package, defined = name if path.name == "__init__.py" else name.rpartition(".")[0], {}
    for node in body:
        bound = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = (part for one in targets for part in ast.walk(one))
            bound = [part.id for part in parts if isinstance(part, ast.Name)]
        for one in bound:
            defined.setdefault(one, []).append(node)
    return _Module(package, defined, _imports(body, package))


def _parsed(source: str) -> ast.Module:
    """The syntax tree of ``source`` without docstrings and annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, ast.Constant(None) if isinstance(node, ast.AnnAssign) else None)
        if isinstance(getattr(node, "body", None), list):
            node.body = [one for one in node.body if not _is_docstring(one)]
    return tree


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _imports(nodes: Iterable[ast.AST], package: str) -> dict[str, Symbol]:
    """What the imports among ``nodes`` bind; relative ones are resolved from ``package``."""
    bound: dict[str, Symbol] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                bound[alias.asname or name] = (name, "")
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                bound[alias.asname or alias.name] = (inner, "") if _module(inner) else (source, alias.name)
    return bound


def _statements(module: str, name: str) -> list[ast.stmt]:
    found = _module(module)
    return found.defined.get(name, []) if found else []


def _is_stage(module: str, name: str) -> bool:
    functions = [node for node in _statements(module, name) if isinstance(node, ast.FunctionDef)]
    return any(getattr(one, "id", "") == "cached" for node in functions for one in ast.walk(node))


def _next(module: str, name: str) -> Iterator[Symbol]:
    """What a symbol's statements name, one step on."""
    found = _module(module)
    if found is None:
        return
    if not name:
        yield from ((module, one) for one in found.defined)
    elif name in found.imported and name not in found.defined:  # a name that is only handed on
        yield found.imported[name]
    for node in found.defined.get(name, []):
        yield from _names(node, module, found)


def _names(node: ast.AST, module: str, found: _Module) -> Iterator[Symbol]:
    """Symbols that ``node`` names: of an imported module, what is taken from it."""
    nodes = list(ast.walk(node))
    bound, of_modules = found.imported | _imports(nodes, found.package), set()
    for one in nodes:
        base = getattr(one, "value", None)
        if isinstance(one, ast.Attribute) and isinstance(base, ast.Name) and base.id in bound:
            source, taken = bound[base.id]
            if not taken:
                inner = f"{source}.{one.attr}"
                of_modules.add(id(base))
                yield (inner, "") if _module(inner) else (source, one.attr)
    own = {one.arg for one in nodes if isinstance(one, ast.arg)}  # variables may be called as modules are
    own |= {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    for one in nodes:
        if isinstance(one, ast.Name) and id(one) not in of_modules:
            if one.id in bound and (bound[one.id][1] or one.id not in own):
                yield bound[one.id]
            elif one.id in found.defined:
                yield module, one.id
