"""One rule of reuse: a stage is made again when anything that it depends on has changed.

A stage is a function that first calls the stages whose results it reads, so that nothing stale can be read.
Then it hands its work to :func:`cached`. Its receipt (JSON) names what it depended on (checksums of inputs,
settings, digests of code, versions of the packages that it computes with) and the checksum of every output.
The receipt is removed before the work begins and written last.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.method.errors import BundleError
from lib.runs import locks, ranks
from lib.runs.code import GONE, PROJECT, code_of, digest, packages_of, version
from lib.runs.files import checksum, remember, remembered, signature, write_json
from lib.runs.machine import deterministic, machine, tell

if TYPE_CHECKING:
    from lib.runs.run import Run

NOT_MADE = "not made yet"
"""The only reason for making a stage that is not printed."""
KINDS = {"settings": "other settings", "inputs": "another input", "code": "other code"}
KINDS |= {"packages": "another package"}
_told: set[tuple[str, str]] = set()
_as_finished: ContextVar[bool] = ContextVar("as_finished", default=False)


@contextmanager
def as_finished() -> Iterator[None]:
    """Take results as they are, if they are whole: of whatever code and packages, and without the photos."""
    token = _as_finished.set(True)
    try:
        yield
    finally:
        _as_finished.reset(token)


is_as_finished = _as_finished.get
"""Whether results are taken as they are."""


def cached(
    run: Run,
    name: str,
    make: Callable[[], object],
    *,
    outputs: Iterable[Path],
    inputs: Iterable[Path] = (),
    settings: Mapping[str, Any] | None = None,
    code: Sequence[Callable] = (),
    scratch: Path | None = None,
    together: bool = False,
) -> bool:
    """Run ``make`` unless its ``outputs`` are there, from the same inputs, settings, code and packages.

    Args:
        name: of the stage and its receipt.
        make: writes every file of ``outputs``.
        settings: what of the settings the outcome depends on, JSON-like.
        code: functions; all that they reach counts (:mod:`lib.runs.code`), with the packages used there.
        scratch: folder for unfinished work; emptied where other inputs, settings, code or packages left it.
        together: all ranks (:mod:`lib.runs.ranks`) call this and share the work.

    Returns:
        True where the outputs were reused.

    Raises:
        BundleError: another run writes to the folder.
        OSError: an input is not there, or ``make`` left an output out.
    """
    outputs = list(outputs)
    if is_as_finished():
        if why := why_damaged(run, name, outputs):
            raise BundleError(f"{run.folder}: {name}: {why}; run run_all.sh again")
        return True
    _recall(run.folder)
    needs = needs_of(run.folder, inputs, settings or {}, code)
    if not why_stale(run, name, needs, outputs):
        return _reuse(run, name, scratch)
    make, wait = deterministic(run.settings.deterministic)(make), ranks.wait if together else lambda: None
    if together and ranks.rank() > 0:
        wait()  # for the scratch folder
        make()
        wait()
        return False
    with locks.holding(run.folder):
        why = why_stale(run, name, needs, outputs)
        if not why:  # whoever held the lock has made it
            return _reuse(run, name, scratch)
        _begin(run, name, why, scratch, needs)
        wait()
        started = time.perf_counter()
        make()
        write_receipt(run, name, needs, outputs, time.perf_counter() - started)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)  # NFS keeps what is open; the next call removes it
        wait()
    return False


@lru_cache(maxsize=8)
def _recall(folder: Path) -> None:
    """Let :func:`checksum` know what earlier processes have read: a table or weights may be gigabytes."""
    for path in (folder / "receipts").glob("*.json"):
        for one, size, changed_ns, inode, found in (_read(path) or {}).get("read", []):
            remember(Path(one), (size, changed_ns, inode), found)


def needs_of(
    folder: Path, inputs: Iterable[Path], settings: Mapping[str, Any], code: Iterable[Callable]
) -> dict[str, Any]:
    """What a stage depends on, JSON-like: checksums of inputs, settings, digests of code, versions."""
    code = code_of(code)
    sums = {_named(path, folder): checksum(path) for path in inputs}
    needs = {"inputs": sums, "settings": settings, "code": code, "packages": packages_of(code)}
    return json.loads(json.dumps(needs, default=str))


IN_PROJECT = "{project}/"


def _named(path: Path, folder: Path) -> str:
    """``path`` as receipts of ``folder`` name it: the run may be moved, and the project, into a container."""
    if path.is_relative_to(folder):
        return str(path.relative_to(folder))
    return f"{IN_PROJECT}{path.relative_to(PROJECT)}" if path.is_relative_to(PROJECT) else str(path)


def _located(name: str, folder: Path) -> Path:
    """The path that :func:`_named` has named."""
    return PROJECT / name.removeprefix(IN_PROJECT) if name.startswith(IN_PROJECT) else folder / name


def why_stale(run: Run, name: str, needs: Mapping[str, Any], outputs: Sequence[Path]) -> str:
    """Why a stage must be made (again), as half a sentence; empty where its receipt holds."""
    known = read_receipt(run, name)
    return (differences(known["needs"], needs) if known else "") or why_damaged(run, name, outputs)


def why_damaged(run: Run, name: str, outputs: Sequence[Path]) -> str:
    """What is wrong with a stage's files, as half a sentence; empty where they are those that it wrote."""
    known = read_receipt(run, name)
    if known is None:
        return "its receipt is damaged" if run.receipt(name).exists() else NOT_MADE
    for path in outputs:
        noted = known["outputs"].get(_named(path, run.folder))
        if noted is None or not path.exists():
            return f"{path} is {'gone' if noted else 'not in its receipt'}"
        if list(signature(path)) == noted[1:]:  # it need not be read again
            remember(path, signature(path), noted[0])
        elif checksum(path) != noted[0]:
            return f"{path} is damaged: its checksum is not the one that was noted"
    return ""


def differences(known: Mapping[str, Any], needs: Mapping[str, Any]) -> str:
    """What of ``needs`` differs from what a receipt has ``known``, by name; settings and versions in full."""
    said = []
    for kind, words in KINDS.items():
        before, now = _flat(known.get(kind, {})), _flat(needs[kind])
        changed = [name for name in before | now if before.get(name) != now.get(name)]
        if kind in {"settings", "packages"}:
            changed = [f"{name} {before.get(name)}, now {now.get(name)}" for name in changed]
        shown = changed[:3] + ([f"{len(changed) - 3} more"] if len(changed) > 3 else [])
        said += [f"{words} ({'; '.join(shown)})"] if changed else []
    return "; ".join(said)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_group = isinstance(value, dict) and value
        flat |= _flat(value, f"{before}{name}.") if is_group else {f"{before}{name}": value}
    return flat


def is_current(run: Run, name: str) -> bool:
    """Whether the stage ``name`` was made by today's code, packages and input files, and is whole.

    Judged by its receipt alone: the run's settings, and photos that were added, are not looked at.
    """
    known = read_receipt(run, name)
    if known is None:
        return False
    needs, outputs = known["needs"], [_located(one, run.folder) for one in known["outputs"]]
    inputs = {one: _located(one, run.folder) for one in needs["inputs"]}
    now = {
        "code": {one: digest(one) for one in needs["code"]},
        "packages": {one: version(one) for one in needs["packages"]},
        "inputs": {one: checksum(path) if path.exists() else GONE for one, path in inputs.items()},
    }
    return not why_stale(run, name, needs | now, outputs)


def read_receipt(run: Run, name: str) -> dict[str, Any] | None:
    """The receipt of the stage ``name``; None where there is none, or it is damaged."""
    return _read(run.receipt(name))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"needs", "outputs", "made"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def write_receipt(
    run: Run, name: str, needs: Mapping[str, Any], outputs: Sequence[Path], seconds: float
) -> None:
    """Note what a stage was made from, and its outputs' checksums, and say that it was made."""
    sums = {_named(path, run.folder): [checksum(path), *signature(path)] for path in outputs}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"stage": name, "made": now, "seconds": round(seconds, 1), "machine": machine()}
    outside = [one for one in remembered if not Path(one[0]).is_relative_to(run.folder)]
    read = [(path, *of, remembered[path, of]) for path, of in outside]
    write_json(run.receipt(name), about | {"needs": needs, "outputs": sums, "read": read})
    tell(f"made    {name} in {seconds:.1f} s")
    _told.add((str(run.folder), name))


def _reuse(run: Run, name: str, scratch: Path | None) -> bool:
    """Say once in a process that a stage is reused: every stage that reads its results asks for it. True."""
    if scratch is not None and ranks.rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed after its receipt
    if (str(run.folder), name) not in _told and ranks.rank() == 0:
        known = read_receipt(run, name)
        tell(f"reused  {name} (made {known['made'] if known else 'meanwhile'})")
    _told.add((str(run.folder), name))
    return True


def _begin(run: Run, name: str, why: str, scratch: Path | None, needs: Mapping[str, Any]) -> None:
    """Say why a stage is made again, remove its receipt, empty a ``scratch`` that other work left."""
    if why != NOT_MADE:
        tell(f"again   {name}: {why}")
    run.receipt(name).unlink(missing_ok=True)
    if scratch is None:
        return
    noted = scratch / "needs.json"
    try:
        same = json.loads(noted.read_text(encoding="utf-8")) == needs
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(scratch, ignore_errors=True)
        write_json(noted, needs)
