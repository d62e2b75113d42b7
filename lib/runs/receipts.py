"""Receipts: what is known about a finished stage, and why one no longer holds.

A receipt (JSON) names the key of everything that a stage depended on, its parts, and the checksum of every output. With it a file
that was damaged, replaced, or made by other settings or older code is told from a good one, and named, before it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.runs.files import ArtefactError, checksum, write_json

NOTEBOOKS = {
    "manifest": "01_data_preparation", "features": "01_data_preparation", "semivariogram": "03_semivariogram",
    "training": "02_baseline_geoclip or 04_regularized_training", "evaluation": "05_error_at_granularity",
}  # fmt: skip
"""Beginning of a stage's name -> the notebooks that make it."""
FOLDER = "receipts"
NOT_MADE = "not made yet"
"""The one reason to make a stage that is no news."""


def read(path: Path) -> dict[str, Any] | None:
    """The receipt at ``path``; None where there is none or it is damaged."""
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4_096)
def _read(path: Path, size: int, changed_ns: int, inode: int) -> dict[str, Any] | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(content, dict) and isinstance(content.get("key"), str) and isinstance(content.get("outputs"), dict)):
        return None
    noted = content.pop("checksum", None)  # receipts of earlier versions have none
    return content if noted in (None, _digest(content)) else None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a receipt, with a checksum of itself: a damaged one would call good files damaged."""
    plain = json.loads(json.dumps(content, default=str))
    write_json(path, plain | {"checksum": _digest(plain)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def relative(path: Path, folder: Path) -> str:
    """``path`` as receipts of ``folder`` name it: from there where it lies inside, so that a folder that was moved stays good."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def why_anew(receipt: Path, key: str, parts: Mapping[str, Any], outputs: Sequence[Path], folder: Path) -> str:
    """Why a stage must be made (again), as half a sentence that names file or setting; empty where its receipt holds."""
    known = read(receipt)
    if known is None:
        return "its receipt is damaged" if receipt.exists() else NOT_MADE
    if known["key"] != key:
        return "; ".join(differences(known, parts)) or "what it depends on has changed"
    for path in outputs:
        noted = known["outputs"].get(relative(path, folder))
        if noted is None:
            return f"{path} is not in its receipt"
        if not path.exists():
            return f"{path} is gone"
        if checksum(path) != noted:
            return f"{path} is damaged, its checksum is not the one that was noted"
    return ""


def differences(known: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
    """What of a receipt's parts is not what ``parts`` (named inputs, settings, code, packages) say, one half sentence a kind."""
    said = []
    settings = _changed(_flat(known.get("settings") or {}), _flat(parts["settings"]))
    if settings:
        said.append(f"other settings ({_listed(settings)})")
    for kind, words in (("inputs", "another input"), ("code", "other code"), ("packages", "another package")):
        if kind in known and (changed := _changed(known[kind], parts[kind])):
            versions = kind == "packages"
            said.append(f"{words} ({_listed(changed) if versions else ', '.join(name for name, *_ in changed[:3])})")
    return said


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    before, now = (json.loads(json.dumps(values, default=str)) for values in (before, now))
    names = list(dict.fromkeys([*before, *now]))
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _listed(changed: Sequence[tuple[str, Any, Any]]) -> str:
    shown = [f"{name} {_short(before)}, now {_short(now)}" for name, before, now in changed[:3]]
    return "; ".join([*shown, *([f"{len(changed) - 3} more"] if len(changed) > 3 else [])])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) and value else {f"{before}{name}": value}
    return flat


def of(path: Path) -> dict[str, Any] | None:
    """The receipt that names ``path`` among its outputs; None where no stage has noted it."""
    return next(iter(_naming(path)), None)


def _naming(path: Path) -> Iterator[dict[str, Any]]:
    folder = next((one for one in path.parents if (one / FOLDER).is_dir()), None)
    for receipt in sorted((folder / FOLDER).glob("*.json")) if folder else ():
        if (known := read(receipt)) and relative(path, folder) in known["outputs"]:
            yield known | {"name": relative(path, folder)}


def check_whole(path: Path) -> dict[str, Any] | None:
    """The receipt of ``path``, whose bytes are those that its stage wrote; None where no stage has noted it.

    Raises:
        ArtefactError: they are not; the message names the file and the notebook that makes it again.
    """
    known = of(path)
    if known and checksum(path) != known["outputs"][known["name"]]:
        raise ArtefactError(
            f"{path} is damaged: its checksum is not the one that the stage {known['stage']} noted; run {made_by(known['stage'])} again"
        )
    return known


def made_by(stage: str) -> str:
    """The notebook that makes ``stage``, as a message names it."""
    begins = stage.partition("-")[0]
    return f"notebook {NOTEBOOKS[begins]}" if begins in NOTEBOOKS else f"what makes {stage}"
