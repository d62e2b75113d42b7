"""What it takes to rebuild a run (settings, versions, machine, commit), and SHA256SUMS of its files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.method.errors import BundleError
from lib.runs import cache
from lib.runs.code import version
from lib.runs.files import checksum, one_line, write_json, writing
from lib.runs.machine import machine
from lib.settings import PROJECT

if TYPE_CHECKING:
    from lib.runs.run import Run

FILE = "provenance.json"
SUMS = "SHA256SUMS"


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of the finished run in ``folder``.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        said = f"{path}: not the provenance of a finished run ({one_line(error)})"
        raise BundleError(f"{said}; run run_all.sh again") from error


def write_provenance(run: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Write provenance.json of ``run`` and return what it says.

    Args:
        seconds: wall time by notebook.
    """
    names = (path.stem for path in sorted((run.folder / "receipts").glob("*.json")))
    stages = [known for name in names if (known := cache.read_receipt(run, name))]
    computed = [known for known in stages if "notebook-" not in known["stage"]]
    written = {
        "run": run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": json.loads(run.settings.model_dump_json()),
        "git": _git_state(),
        "machine": machine(),
        "threads": sorted({known["machine"].get("threads", 0) for known in computed}),
        "packages": package_versions(),
        "seconds_by_notebook": dict(seconds),
        "seconds_by_stage": {known["stage"]: known["seconds"] for known in computed},
    }
    write_json(run.provenance, written)
    return written


def write_checksums(run: Run) -> None:
    """Write SHA256SUMS, for ``sha256sum --check``: all files but receipts, logs and hidden ones."""
    found = sorted(path for path in run.folder.rglob("*") if path.is_file())
    files = [path for path in found if _is_result(path, run.folder)]
    with writing(run.folder / SUMS) as aside:
        lines = (f"{checksum(path)}  {path.relative_to(run.folder).as_posix()}\n" for path in files)
        aside.write_text("".join(lines), encoding="utf-8")


def _is_result(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return parts[0] not in {"receipts", "logs", SUMS} and not any(part.startswith(".") for part in parts)


def package_versions() -> dict[str, str]:
    """Installed version of each package that requirements.txt pins."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {name: version(name) for name, equals, _ in (line.partition("==") for line in lines) if equals}


def _git_state() -> dict[str, Any]:
    """Commit and whether the tree differs from it; nulls outside a git checkout."""
    command = ["git", f"--git-dir={PROJECT / '.git'}", "describe", "--always", "--exclude=*"]
    command += ["--abbrev=40", "--dirty"]
    try:
        said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout  # noqa: S603
    except OSError:
        said = ""
    commit, dirty, _ = said.strip().partition("-dirty")
    return {"commit": commit or None, "dirty": bool(dirty) if commit else None}
