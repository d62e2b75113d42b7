"""Two processes make the same files as one, each once; and run_all.sh starts them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import SMALL, python

from lib import pipeline, stages


def program(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    asked = ["smoke", folder / "run", f"dataset.root={folder / 'photos'}", *SMALL]
    return python("-m", "lib.stages", *asked, processes=processes)


def test_two_processes_make_what_one_makes_and_each_file_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    trainings = [f"training-{name}_seed0" for name in ("decayed", "infonce", "similarity")]
    for folder, processes in ((one, 1), (two, 2)):
        done = program(folder, processes)
        assert done.returncode == 0, done.stderr[-3_000:]
        made = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("made    ")]
        assert sorted(made) == sorted(["manifest", "features", "semivariogram", *trainings])
    files = [path.relative_to(one) for path in sorted((one / "run").rglob("*")) if path.suffix in SAME]
    assert len(files) > 8
    assert [name for name in files if (one / name).read_bytes() != (two / name).read_bytes()] == []
    again = program(two, 1)
    assert again.returncode == 0 and "made    " not in again.stdout and again.stdout.count("reused  ") == 6


SAME = {".npy", ".npz", ".safetensors", ".csv", ".parquet"}


def test_run_all_starts_the_processes_and_says_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked, codes = [], iter([0, 1])

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    call = ["--profile", "smoke", "--run", f"{tmp_path}/run"]
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(pipeline, "_execute_all", lambda *_: None)
    monkeypatch.setattr(pipeline.subprocess, "run", run)
    assert pipeline.main([*call, "--set", "training.epochs=1"]) == 0
    assert asked[0][-4:] == ["lib.stages", "smoke", f"{tmp_path}/run", "training.epochs=1"]
    assert {"--nproc-per-node=2", "--local-addr=127.0.0.1"} <= set(asked[0])
    assert pipeline.main(call) == 1
    assert "run_all.sh: one of the 2 processes failed; its sentence" in capsys.readouterr().err
    monkeypatch.setenv("NPROC", "many")
    assert pipeline.main(call) == 1
    assert "NPROC=many: give the number of processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a profile, a folder and settings"),
        (["smoke", "FOLDER", "training.epochs"], "'training.epochs' is no setting"),
        (["smoke", "FOLDER", "--fast"], "'--fast' is no setting"),
        (["smoke", "FOLDER", "dataset=folder", "dataset.root=FOLDER/nowhere"], "no such folder"),
    ],
)
def test_a_mistake_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert stages.main([one.replace("FOLDER", str(tmp_path)) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lib.stages") and sentence in said and not list(tmp_path.glob("receipts/*"))
