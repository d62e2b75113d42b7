"""The stages: --list looks up what would be made; two processes make the same files as one, each once."""

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, python
from safetensors.numpy import load_file

from lib import pipeline, stages
from lib.method import geodesy
from lib.runs import Run


@pytest.fixture
def chain(make_run):
    """A run with two stages that were made, the second from the first; and what would ask for them again."""
    run = make_run()
    first, second = run.folder / "first.txt", run.folder / "second.txt"
    asked = {
        "first": {"outputs": [first], "settings": {"size": 1}, "code": [geodesy.distance_km]},
        "second": {"outputs": [second], "inputs": [first], "settings": {"half": 0.5}},
    }
    for name, stage in asked.items():
        run.produce(name, make=lambda path=stage["outputs"][0]: path.write_text("made"), **stage)
    return run, asked


def looked_up(run, asked):
    rehearsal = stages.Rehearsal(run.settings, run.folder)
    for name, stage in asked.items():
        with contextlib.suppress(stages._LookedUp):
            rehearsal.produce(name, make=lambda: pytest.fail("made"), **stage)
    return rehearsal.found


def test_what_was_made_from_the_same_is_reused(chain):
    assert looked_up(*chain) == {"first": True, "second": True}


@pytest.mark.parametrize("change", ["settings", "output", "receipt", "second"])
def test_a_stage_whose_input_is_made_anew_is_made_anew_too_and_no_other(chain, change):
    run, asked = chain
    if change == "settings":
        asked["first"]["settings"] = {"size": 2}
    elif change == "output":
        (run.folder / "first.txt").write_text("torn")
    elif change == "receipt":
        run.receipt("first").unlink()
    else:
        asked["second"]["settings"] = {"half": 0.25}
    assert looked_up(run, asked) == {"first": change == "second", "second": False}


def test_a_stage_that_two_notebooks_ask_for_stands_under_the_first_that_is_executed(make_run):
    run = make_run("training.strategies=infonce,decayed", "training.seeds=0")
    assert ("02", "training-infonce_seed0", False) in stages.look_up(run, ["02", "04"])
    assert {("04", "training-infonce_seed0", False)} < set(stages.look_up(run, ["04"]))


def test_a_damaged_manifest_does_not_stop_the_look_at_its_repair(make_run):
    run = make_run()
    run.manifest.write_bytes(run.manifest.read_bytes()[:900])
    found = stages.look_up(run, ["01", "02", "03", "04", "05"])
    assert found and not any(is_reused for *_, is_reused in found)


def program(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    asked = ["smoke", folder / "run", f"dataset.root={folder / 'photos'}", *SMALL]
    return python("-m", "lib.stages", *asked, processes=processes)


def test_two_processes_make_what_one_makes_and_each_file_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        done = program(folder, processes)
        assert done.returncode == 0, done.stderr[-3_000:]
        made = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("made    ")]
        trainings = [f"training-{name}_seed0" for name in ("decayed", "infonce", "similarity")]
        assert sorted(made) == sorted(["manifest", "features", "semivariogram", "evaluation", *trainings])
    weights_of_one_process = [f"checkpoints/{name}_seed0.safetensors" for name in ("infonce", "similarity")]
    for name in ("features/features.npy", *weights_of_one_process):
        assert (one / "run" / name).read_bytes() == (two / "run" / name).read_bytes(), name
    sums = [dict(np.load(folder / "run" / "semivariogram" / "empirical.npz")) for folder in (one, two)]
    for name, value in sums[0].items():  # the ranks' shares are summed in another order
        np.testing.assert_allclose(value, sums[1][name], rtol=1e-6, atol=1e-12, err_msg=name)
    weights = [
        load_file(folder / "run" / "checkpoints" / "decayed_seed0.safetensors") for folder in (one, two)
    ]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    again = Run.open("smoke", f"{two}/run", [f"dataset.root={two / 'photos'}", *SMALL])
    found = {stage: is_reused for _, stage, is_reused in stages.look_up(again, ["01", "02", "04", "05"])}
    assert found == dict.fromkeys([*receipts_of(two), "regions"], True) | {"regions": False}
    assert receipts_of(two) == {"manifest", "features", "semivariogram", "evaluation", *trainings}


def receipts_of(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "run" / "receipts").glob("*.json")}


def test_the_notebooks_find_what_several_processes_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The pipeline starts the processes, and says so where one of them fails."""
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
    assert "--nproc-per-node=2" in asked[0]
    assert pipeline.main(call) == 1
    assert "run_all.sh: one of the 2 processes failed; its sentence" in capsys.readouterr().err
    monkeypatch.setenv("NPROC", "many")
    assert pipeline.main(call) == 1
    assert "NPROC=many: give the number of processes" in capsys.readouterr().err


def test_a_mistake_ends_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    wrong = ["dataset=folder", f"dataset.root={tmp_path}/nowhere"]
    done = python("-m", "lib.stages", "smoke", tmp_path / "run", *wrong)
    assert done.returncode == 1 and "lib.stages, rank 0: " in done.stderr and "no such folder" in done.stderr
    assert not list((tmp_path / "run").glob("receipts/*"))
