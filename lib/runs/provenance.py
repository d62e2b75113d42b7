"""What it takes to rebuild a run: settings, versions, machine, commit, checksums."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lib.method.errors import BundleError
from lib.runs import receipts
from lib.runs.files import READING_ERRORS, checksum, one_line
from lib.runs.machine import machine
from lib.settings import PROFILES, PROJECT

if TYPE_CHECKING:
    from lib.runs.run import Run

NAMES = ("provenance.json", "manifest.json")
"""Of the file; the second is its name in earlier runs."""


def provenance_file(folder: Path) -> Path:
    """The provenance of the run in ``folder``, by whichever of ``NAMES`` is there."""
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    return (found or [folder / NAMES[0]])[0]


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of the finished run in ``folder``.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = provenance_file(folder)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(written["outputs"], dict):
            raise TypeError("no outputs")
    except FileNotFoundError:
        raise BundleError(
            f"{path} is not there: give the folder of a run that run_all.sh has finished"
        ) from None
    except READING_ERRORS as error:
        raise BundleError(
            f"{path}: damaged, or no run's provenance ({one_line(error)}); run run_all.sh again"
        ) from error
    return written


def provenance(run: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What it takes to rebuild ``run``: settings, versions, machine, git commit, checksums of inputs and
    outputs.

    Args:
        seconds: wall time by notebook.
    """
    stages = [
        known for path in sorted((run.folder / "receipts").glob("*.json")) if (known := receipts.read(path))
    ]
    files = [path for path in sorted(run.folder.rglob("*")) if path.is_file() and is_output(path, run.folder)]
    return {
        "run": run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": json.loads(run.settings.model_dump_json()),
        "seeds": run.settings.training.seeds,
        "git": _git_state(),
        "machine": machine(),
        "packages": package_versions(),
        "seconds_by_notebook": dict(seconds),
        "seconds_by_stage": {known["stage"]: known["seconds"] for known in stages},
        "keys_by_stage": {known["stage"]: known["key"] for known in stages},
        "threads": torch.get_num_threads(),
        "inputs": {str(path.relative_to(PROJECT)): checksum(path) for path in _sources(run.settings.profile)},
        "outputs": {str(path.relative_to(run.folder)): checksum(path) for path in files},
    }


def is_output(path: Path, folder: Path) -> bool:
    """Whether the file at ``path`` in a run's ``folder`` is an output of its notebooks; index.html is noted
    by itself."""
    first = path.relative_to(folder).parts[0]
    return first not in {"receipts", "logs", "index.html", *NAMES} and not path.name.startswith(".")


def _sources(profile: str) -> list[Path]:
    notebooks = [
        path for folder in ("notebooks", "study") for path in sorted((PROJECT / folder).glob("*.ipynb"))
    ]
    found = [PROJECT / "requirements.txt", *notebooks, PROFILES / f"{profile}.yaml"]
    return [path for path in found if path.is_file()]


def package_versions() -> dict[str, str]:
    """Installed version of each package that requirements.txt pins, or that there is none."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]
    there = {one.name.lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
    return {name: there.get(name.lower().replace("_", "-"), "not installed") for name in names}


def _git_state() -> dict[str, Any]:
    """Commit and whether the tree differs from it; nulls outside a git checkout."""

    def ask(*words: str) -> str:
        options = {"cwd": PROJECT, "capture_output": True, "text": True, "check": True}
        return subprocess.run(["git", *words], **options).stdout.strip()  # noqa: S603, S607

    try:
        top = Path(ask("rev-parse", "--show-toplevel"))
        if top.resolve() == PROJECT.resolve():  # not a checkout around ours
            changes = ask("status", "--porcelain", "--untracked-files=no")
            return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "dirty": None}
