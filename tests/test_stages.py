"""Two processes make the same files as one, each once, on one machine or two; and run_all.sh starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, python

from lib import pipeline, stages
from lib.data import features
from lib.method.errors import BundleError
from lib.runs import Run, ranks
from lib.settings import PROJECT


def program(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    asked = ["smoke", folder / "run", f"dataset.root={folder / 'photos'}", *SMALL]
    return python("-m", "lib.stages", *asked, processes=processes)


def made(said: str) -> list[str]:
    """The stages that were made, sorted; a progress bar may stand before the line's end."""
    return sorted(part.split()[0] for part in said.split("made    ")[1:])


STAGES = [
    "features", "manifest", "semivariogram", "training-decayed_seed0", "training-infonce_seed0",
    "training-similarity_seed0",
]  # fmt: skip
SAME = {".npy", ".npz", ".safetensors", ".csv", ".parquet"}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process has made."""
    folder = tmp_path_factory.mktemp("one")
    done = program(folder, 1)
    assert done.returncode == 0 and made(done.stdout) == STAGES, done.stderr[-3_000:]
    return folder


def check_same(one: Path, two: Path) -> None:
    files = [path.relative_to(one) for path in sorted((one / "run").rglob("*")) if path.suffix in SAME]
    assert len(files) > 8
    assert [name for name in files if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_two_processes_make_what_one_makes_and_each_file_once(one: Path, tmp_path: Path) -> None:
    done = program(tmp_path, 2)
    assert done.returncode == 0 and made(done.stdout) == STAGES, done.stderr[-3_000:]
    check_same(one, tmp_path)
    again = program(tmp_path, 1)
    assert again.returncode == 0 and "made    " not in again.stdout and again.stdout.count("reused  ") == 6


def test_two_machines_go_on_after_one_was_killed_and_share_a_training(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two torchruns on this machine, with the commands of run_all.sh."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RDZV_ENDPOINT", f"127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("NNODES", "2")
    call = ["--profile", "smoke", "--run", f"{tmp_path}/run", "--set", f"dataset.root={one / 'photos'}"]
    call += [word for setting in SMALL for word in ("--set", setting)]
    commands, executed, done = [], [], subprocess.CompletedProcess((), 0)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_execute_all", lambda *_: executed.append(os.environ["NODE_RANK"]))
        patch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
        for number in ("0", "1"):
            patch.setenv("NODE_RANK", number)
            assert pipeline.main(call) == 0
    assert executed == ["0"]

    def start(*settings: str) -> list[subprocess.Popen[str]]:
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return [subprocess.Popen([*two, *settings], cwd=PROJECT, env=variables, **pipes) for two in commands]

    def made_by(both: list[subprocess.Popen[str]]) -> list[str]:
        said = "".join([process.communicate(timeout=90)[0] for process in both])
        assert [process.returncode for process in both] == [0, 0], said[-3_000:]
        return made(said)

    survivor, killed = start()
    while not (tmp_path / "run" / "receipts" / "manifest.json").exists():
        assert survivor.poll() is None, survivor.communicate()[0]
        time.sleep(0.05)
    for process in [*psutil.Process(killed.pid).children(recursive=True), killed]:
        process.kill()
    survivor.communicate(timeout=90)
    assert survivor.returncode not in (None, 0)
    after = made_by(start())
    assert set(after) <= set(STAGES) and len(after) == len(set(after))
    check_same(one, tmp_path)
    shared = ["training.parallel=batches", "training.strategies=infonce", "training.epochs=2"]
    assert made_by(start(*shared)) == ["training-infonce_seed0"]


def test_blocks_on_another_machines_disk_are_missed(
    make_run: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Run = make_run("backbone.shard_size=32")
    scratch = run.features.with_name("unfinished")
    scratch.mkdir()
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(features, "_make_blocks", lambda *_: None)
    with pytest.raises(BundleError, match="5 of 5 blocks, made by other processes, are not in .*disk that"):
        features._extract(run, scratch)


@pytest.mark.parametrize(
    "variables",
    [
        {"NPROC": "many"},
        {"NPROC": "0"},
        {"NNODES": "2", "NODE_RANK": "2", "RDZV_ENDPOINT": "node1:29500"},
        {"NNODES": "2", "NODE_RANK": "0", "RDZV_ENDPOINT": "node1"},
        {"NNODES": "3", "RDZV_ENDPOINT": "node1:29500"},
        {"NNODES": "2", "NODE_RANK": "0"},
        {"NNODES": "2", "NODE_RANK": "first", "RDZV_ENDPOINT": "node1:29500"},
    ],
)
def test_numbers_of_processes_and_machines_that_do_not_fit_are_a_sentence(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert pipeline.main(["--profile", "smoke"]) == 1
    assert "give it as in NPROC=8 NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "tasks"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"NNODES": "2", "SLURM_NODEID": "1", "RDZV_ENDPOINT": "a:1", "SLURM_STEP_NUM_TASKS": "16"}, 16),
    ],
)
def test_tasks_that_do_not_know_of_one_another_are_refused(
    variables: dict[str, str], tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Run, "open", lambda *_: pytest.fail("went on"))
    for main, call in ((pipeline.main, ["--run", f"{tmp_path}/run"]), (stages.main, ["smoke", "run"])):
        assert main(call) == 1
        assert f"each of these {tasks} tasks would think" in capsys.readouterr().err


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
    assert "2 processes make features and trainings …" in capsys.readouterr().out
    monkeypatch.setenv("NPROC", "16")
    assert pipeline.main(call) == 1
    told = capsys.readouterr()
    assert "16 processes make features and trainings; 12 trainings keep 12 of them busy …" in told.out
    assert "run_all.sh: one of the 16 processes failed; its sentence" in told.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a profile, a folder and settings"),
        (["smoke", "FOLDER", "training.epochs"], "write it as group.key=value"),
        (["smoke", "FOLDER", "dataset=folder", "dataset.root=FOLDER/nowhere"], "no such folder"),
    ],
)
def test_a_mistake_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert stages.main([one.replace("FOLDER", str(tmp_path)) for one in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("lib.stages") and sentence in said and not list(tmp_path.glob("receipts/*"))
