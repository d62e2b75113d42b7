"""Two processes on one run: the same files as one process makes, each made once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lib import pipeline
from lib import stages as program_of_stages
from lib.runs import Run, ranks
from lib.settings import PROJECT

SMALL = [
    "device=cpu",
    "dataset.train=96",
    "dataset.validation=24",
    "dataset.test=24",
    "dataset.test_blocked=16",
    "training.epochs=1",
    "backbone.shard_size=32",
    "training.strategies=infonce,decayed,similarity",
    "training.seeds=0",
    "study=null",
]


def stages(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    program = ["-m", "lib.stages", "smoke", str(folder / "run"), f"dataset.root={folder / 'photos'}", *SMALL]
    if processes > 1:
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *program]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1"
    }  # torchrun's own choice; another number of threads sums in another order
    return subprocess.run(
        [sys.executable, *program], cwd=PROJECT, env=environment, capture_output=True, text=True
    )


def test_two_processes_make_what_one_makes_and_each_file_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        done = stages(folder, processes)
        assert done.returncode == 0, done.stderr[-3_000:]
        made = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("made    ")]
        trainings = [f"training-{name}_seed0" for name in ("decayed", "infonce", "similarity")]
        assert sorted(made) == sorted(["manifest", "features", "semivariogram", "evaluation", *trainings])
    for name in (
        "features/features.npy",
        *(f"checkpoints/{name}_seed0.safetensors" for name in ("infonce", "similarity")),
    ):
        assert (one / "run" / name).read_bytes() == (two / "run" / name).read_bytes(), name
    sums = [dict(np.load(folder / "run" / "semivariogram" / "empirical.npz")) for folder in (one, two)]
    for name, value in sums[0].items():  # the ranks' shares are summed in another order
        np.testing.assert_allclose(value, sums[1][name], rtol=1e-6, atol=1e-12, err_msg=name)
    weights = [
        load_file(folder / "run" / "checkpoints" / "decayed_seed0.safetensors") for folder in (one, two)
    ]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    again = stages(two, 2)
    assert again.returncode == 0 and "made    " not in again.stdout, again.stdout
    receipts = {path.stem for path in (two / "run" / "receipts").glob("*.json")}
    assert receipts == {"manifest", "features", "semivariogram", "evaluation", *trainings}


def test_the_notebooks_find_what_several_processes_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The pipeline starts the processes, and says so where one of them fails."""
    asked = []
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(pipeline, "_execute_all", lambda *_: None)
    monkeypatch.setattr(
        pipeline.subprocess,
        "run",
        lambda command, **_: asked.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert (
        pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run", "--set", "training.epochs=1"]) == 0
    )
    assert (
        asked[0][-4:] == ["lib.stages", "smoke", f"{tmp_path}/run", "training.epochs=1"]
        and "--nproc-per-node=2" in asked[0]
    )
    monkeypatch.setattr(
        pipeline.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1)
    )
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 1
    assert "run_all.sh: one of the 2 processes failed; its sentence" in capsys.readouterr().err
    monkeypatch.setenv("NPROC", "many")
    assert pipeline.main(["--profile", "smoke", "--run", f"{tmp_path}/run"]) == 1
    assert "NPROC=many: give the number of processes" in capsys.readouterr().err


def test_alone_a_process_is_the_first_of_one() -> None:
    assert (ranks.rank(), ranks.count(), ranks.said_by_first("x")) == (0, 1, "x")
    ranks.wait()


def test_a_mistake_ends_with_a_sentence(tmp_path: Path) -> None:
    run = Run.open("smoke", f"{tmp_path}/run", ["dataset=folder", f"dataset.root={tmp_path}/nowhere"])
    run.folder.mkdir()
    program = [
        sys.executable,
        "-m",
        "lib.stages",
        "smoke",
        str(run.folder),
        "dataset=folder",
        f"dataset.root={tmp_path}/nowhere",
    ]
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and "lib.stages, rank 0: " in done.stderr and "no such folder" in done.stderr
    assert not list(run.folder.glob("receipts/*"))


def test_without_profile_and_folder_the_stages_say_how_they_are_called(capsys: pytest.CaptureFixture) -> None:
    assert program_of_stages.main(["quick"]) == 1
    assert "torchrun -m lib.stages quick results/quick" in capsys.readouterr().err
