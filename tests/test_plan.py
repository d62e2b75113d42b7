"""--list says what would be made and what reused, and touches nothing."""

import contextlib

import pytest

from lib import stages
from lib.method import geodesy
from lib.runs import Run
from lib.settings import load
from lib.train import training


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


def snapshot(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_looking_up_writes_nothing_and_trains_nothing(make_run, monkeypatch):
    run = make_run("training.strategies=infonce,decayed", "training.seeds=0,1", "study=null")
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained"))
    before = snapshot(run.folder)
    found = stages.look_up(run, ["01", "02", "03", "04", "05", "06"])
    assert [(notebook, stage) for notebook, stage, _ in found] == [
        ("01", "manifest"), ("01", "features"), ("02", "training-infonce_seed0"),
        ("02", "training-infonce_seed1"),
        ("03", "semivariogram"), ("04", "training-decayed_seed0"), ("04", "training-decayed_seed1"),
        ("05", "evaluation"), ("05", "regions"),
    ]  # fmt: skip
    assert not any(is_reused for *_, is_reused in found)
    assert snapshot(run.folder) == before


def test_a_stage_that_two_notebooks_ask_for_stands_under_the_first_that_is_executed(make_run):
    run = make_run("training.strategies=infonce,decayed", "training.seeds=0", "study=null")
    assert ("02", "training-infonce_seed0", False) in stages.look_up(run, ["02", "04"])
    assert {("04", "training-infonce_seed0", False)} < set(stages.look_up(run, ["04"]))


def test_a_run_of_which_nothing_is_there_is_made_whole(tmp_path):
    found = stages.look_up(
        Run(load("smoke", ("device=cpu",)), tmp_path / "run"), ["01", "02", "03", "04", "05"]
    )
    wanted = {"manifest", "features", "semivariogram", "training-infonce_seed0", "evaluation", "regions"}
    assert wanted <= {stage for _, stage, _ in found}
    assert not any(is_reused for *_, is_reused in found)
    assert not (tmp_path / "run").exists()


def test_a_damaged_manifest_of_a_study_does_not_stop_the_look_at_its_repair(make_run):
    run = make_run()
    assert run.settings.study is not None
    run.manifest.write_bytes(run.manifest.read_bytes()[:900])
    found = stages.look_up(run, ["01", "02", "03", "04", "05", "07", "08"])
    assert found and not any(is_reused for *_, is_reused in found)
