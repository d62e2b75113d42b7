"""Receipts: what is known about a finished stage, and why one no longer holds.

A receipt (JSON) names the key of everything that a stage depended on, its parts, and the checksum of every
output. With it a file that was damaged, replaced, or made by other settings or older code is named before it
is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.method.errors import BundleError
from lib.runs.files import checksum, write_json

NOTEBOOKS = {
    "manifest": "01_data_preparation", "features": "01_data_preparation",
    "semivariogram": "01_data_preparation",
    "training": "02_baseline_geoclip or 04_regularized_training", "evaluation": "05_error_at_granularity",
}  # fmt: skip
"""Beginning of a stage's name -> the notebooks that make it, for messages; the order is that of
lib.stages."""
NOT_MADE = "not made yet"
"""The only reason for making a stage that is not printed."""


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
    noted = content.pop("checksum", None) if isinstance(content, dict) else None
    return content if noted is not None and noted == _digest(content) else None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a receipt, with a checksum of itself: a damaged one would call good files damaged."""
    plain = json.loads(json.dumps(content, default=str))
    write_json(path, plain | {"checksum": _digest(plain)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def relative(path: Path, folder: Path) -> str:
    """``path`` as receipts of ``folder`` name it: from there where it lies inside, as the folder may be
    moved."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def why_anew(receipt: Path, key: str, parts: Mapping[str, Any], outputs: Sequence[Path], folder: Path) -> str:
    """Why a stage must be made (again), as half a sentence that names file or setting; empty where its
    receipt holds."""
    known = read(receipt)
    if known is None:
        return "its receipt is damaged" if receipt.exists() else NOT_MADE
    if known["key"] != key:
        return differences(known, parts) or "what it depends on has changed"
    for path in outputs:
        noted = known["outputs"].get(relative(path, folder))
        if noted is None or not path.exists():
            return f"{path} is {'gone' if noted else 'not in its receipt'}"
        if checksum(path) != noted:
            return f"{path} is damaged, its checksum is not the one that was noted"
    return ""


def differences(known: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """What of the parts in a receipt is not what ``parts`` (inputs, settings, code, packages) say; empty
    where all is."""
    said = []
    for kind in ("settings", "inputs", "code", "packages"):
        before, now = (
            _flat(json.loads(json.dumps(of.get(kind) or {}, default=str))) for of in (known, parts)
        )
        changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
        if kind in {"settings", "packages"}:  # these can be read
            shown = [
                f"{name} {_short(before.get(name))}, now {_short(now.get(name))}" for name in changed[:3]
            ]
        else:
            shown = changed[:3]
        more = [f"{len(changed) - 3} more"] if len(changed) > 3 else []
        words = {
            "settings": "other settings",
            "inputs": "another input",
            "code": "other code",
            "packages": "another package",
        }
        said += [f"{words[kind]} ({'; '.join([*shown, *more])})"] * bool(changed)
    return "; ".join(said)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= (
            _flat(value, f"{before}{name}.")
            if isinstance(value, dict) and value
            else {f"{before}{name}": value}
        )
    return flat


def check_whole(path: Path) -> dict[str, Any] | None:
    """The receipt of ``path``, whose bytes are those that its stage wrote; None where no stage has noted it.

    Raises:
        BundleError: they are not; the message names the file and the notebook that makes it again.
    """
    folder = next((one for one in path.parents if (one / "receipts").is_dir()), None)
    for receipt in sorted((folder / "receipts").glob("*.json")) if folder else ():
        known = read(receipt)
        if known and (noted := known["outputs"].get(relative(path, folder))):
            if checksum(path) != noted:
                what = f"its checksum is not the one that the stage {known['stage']} noted"
                raise BundleError(f"{path} is damaged: {what}; run {made_by(known['stage'])} again")
            return known
    return None


def made_by(stage: str) -> str:
    """The notebook that makes ``stage``, as a message names it."""
    begins = stage.partition("-")[0]
    return f"notebook {NOTEBOOKS[begins]}" if begins in NOTEBOOKS else f"what makes {stage}"
