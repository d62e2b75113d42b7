"""The whole of run_all.sh's work, killed at random moments with its kernels and ranks, ends as one that
nobody disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from lib.settings import PROJECT

KILLS = 4


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The smoke profile into ``folder``, with photos of its own."""
    command = [sys.executable, "-m", "lib.pipeline", "--profile", "smoke", "--run", str(folder / "run")]
    command += ["--device", "cpu", "--set", f"dataset.root={folder / 'photos'}"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Whether ``process`` was still at work; it and all that it has started are no more."""
    alive = process.poll() is None
    for one in [*psutil.Process(process.pid).children(recursive=True), process] if alive else ():
        one.kill()
    process.wait()
    return alive


def drawn(folder: Path) -> dict[str, list[str]]:
    """The pictures of each executed notebook, base64."""
    return {
        path.name: [
            output["data"]["image/png"]
            for cell in nbformat.read(path, as_version=4).cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        for path in sorted((folder / "notebooks").glob("*.ipynb"))
    }


@pytest.mark.thorough
def test_a_whole_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Tables, curve, checkpoints, predictions, figures, maps byte for byte; and the pictures inside the
    notebooks."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    started = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0, (tmp_path / "whole" / "log.txt").read_text()[-3_000:]
    seconds, draw, kills = time.monotonic() - started, random.Random(int.from_bytes(os.urandom(4))), 0  # noqa: S311
    while kills < KILLS:
        process = start(tmp_path / "killed")
        time.sleep(draw.uniform(0.05, 0.6) * seconds)
        if not kill(process):
            break
        kills += 1
    assert kills >= 2
    assert start(tmp_path / "killed").wait() == 0, (tmp_path / "killed" / "log.txt").read_text()[-3_000:]
    whole, killed = (tmp_path / name / "run" for name in ("whole", "killed"))
    noted = [dict(reversed(line.split("  ")) for line in read(run)) for run in (whole, killed)]
    timed = {name for name in noted[0] if name.startswith("notebooks/")} | {"index.html", "provenance.json"}
    assert noted[0].keys() == noted[1].keys() and len(noted[0]) - len(timed) > 60
    assert [name for name in noted[0] if noted[0][name] != noted[1][name] and name not in timed] == []
    assert drawn(whole) == drawn(killed) and sum(map(len, drawn(whole).values())) >= 14
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=killed).returncode == 0


def read(run: Path) -> list[str]:
    return (run / "SHA256SUMS").read_text().splitlines()
