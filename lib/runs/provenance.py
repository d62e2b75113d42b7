"""What it takes to rebuild a run: settings, versions, machine, commit, checksums."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lib import settings as settings_module
from lib.runs import receipts
from lib.runs.files import checksum
from lib.runs.machine import machine
from lib.runs.run import Run
from lib.settings import PROJECT


def provenance(run: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What it takes to rebuild ``run``: settings, versions, machine, git commit, checksums of inputs and outputs.

    Args:
        seconds: wall time by notebook.
    """
    stages = [known for path in sorted((run.folder / "receipts").glob("*.json")) if (known := receipts.read(path))]
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
        "inputs": {name: checksum(path) for name, path in _source_files(run).items() if path.exists()},
        "outputs": {str(path.relative_to(run.folder)): checksum(path) for path in files},
    }


def is_output(path: Path, folder: Path) -> bool:
    """Whether the file at ``path`` below a run's ``folder`` is an output of its notebooks: manifest.json has their checksums, and that of index.html."""
    relative = path.relative_to(folder)
    return relative.parts[0] not in {"receipts", "logs", "manifest.json", "index.html"} and not path.name.startswith(".")


def _source_files(run: Run) -> dict[str, Path]:
    files = {"requirements.txt": PROJECT / "requirements.txt"}
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        files[f"notebooks/{path.name}"] = path
    if (profile := settings_module.PROFILES / f"{run.settings.profile}.yaml").is_file():
        files[f"notebooks/profiles/{profile.name}"] = profile
    return files


def package_versions() -> dict[str, str]:
    """Installed version of each package that requirements.txt pins."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]
    return {name: importlib.metadata.version(name) for name in names}


def _git_state() -> dict[str, Any]:
    """Commit and whether the tree differs from it; nulls outside a git checkout."""

    def ask(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != PROJECT.resolve():  # the repository of somebody else around us
            return {"commit": None, "dirty": None}
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
