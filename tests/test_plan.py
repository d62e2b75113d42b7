"""The plan says what would be computed and what reused, how long it takes here and nowhere else, and touches nothing."""

import contextlib
import json

import nbformat
import pytest

from lib import plan, runs
from lib.runs import Run
from lib.settings import load
from lib.train import training


@pytest.fixture
def chain(make_run):
    """A run with two stages that were made, the second from the first; and what would ask for them again."""
    run = make_run()
    first, second = run.folder / "first.txt", run.folder / "second.txt"
    stages = {
        "first": {"outputs": [first], "settings": {"size": 1}, "code": ["geodesy"]},
        "second": {"outputs": [second], "inputs": [first], "settings": {"half": 0.5}},
    }
    for name, stage in stages.items():
        run.produce(name, make=lambda path=stage["outputs"][0]: path.write_text("made"), **stage)
    return run, stages


def looked_up(run, stages):
    rehearsal = plan.Rehearsal(run.settings, run.folder)
    for name, stage in stages.items():
        with contextlib.suppress(plan._LookedUp):
            rehearsal.produce(name, make=lambda: pytest.fail("made"), **stage)
    return {name: is_reused for name, is_reused, _ in rehearsal.found}, rehearsal


def test_what_was_made_from_the_same_is_reused(chain):
    assert looked_up(*chain)[0] == {"first": True, "second": True}


@pytest.mark.parametrize("change", ["settings", "output", "receipt"])
def test_a_stage_whose_input_is_made_anew_is_computed_too(chain, change):
    run, stages = chain
    if change == "settings":
        stages["first"]["settings"] = {"size": 2}
    elif change == "output":
        (run.folder / "first.txt").write_text("torn")
    else:
        run.receipt("first").unlink()
    assert looked_up(run, stages)[0] == {"first": False, "second": False}


def test_only_what_stands_above_a_change_is_computed(chain):
    run, stages = chain
    stages["second"]["settings"] = {"half": 0.25}
    assert looked_up(run, stages)[0] == {"first": True, "second": False}


def test_a_time_is_known_from_this_machine_and_these_settings_only(chain):
    run, _ = chain
    receipt = run.receipt("second")
    content = json.loads(receipt.read_text()) | {"seconds": 12.5}
    receipt.write_text(json.dumps(content))
    assert plan.known_seconds("second", {"half": 0.5}, [run.folder]) == 12.5
    assert plan.known_seconds("second", {"half": 0.25}, [run.folder]) is None
    assert plan.known_seconds("third", {"half": 0.5}, [run.folder]) is None
    receipt.write_text(json.dumps(content | {"machine": runs.machine() | {"processor": "another"}}))
    assert plan.known_seconds("second", {"half": 0.5}, [run.folder]) is None


def test_a_receipt_without_machine_is_believed_where_its_manifest_is_of_this_one(chain):
    run, _ = chain
    content = json.loads(run.receipt("second").read_text())
    content.pop("machine", None)
    run.receipt("second").write_text(json.dumps(content | {"seconds": 3.0}))
    assert plan.known_seconds("second", {"half": 0.5}, [run.folder]) is None
    runs.write_json(run.folder / "manifest.json", {"machine": runs.machine()})
    assert plan.known_seconds("second", {"half": 0.5}, [run.folder]) == 3.0


def snapshot(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_plan_writes_nothing_and_trains_nothing(make_run, monkeypatch):
    run = make_run("training.strategies=infonce,decayed", "training.seeds=0,1", "study=null")
    monkeypatch.setattr(plan, "RESULTS", run.folder / "none")
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained"))
    before = snapshot(run.folder)
    found = plan.steps(run, ["01", "02", "03", "04", "05", "06"])
    assert [one.stage for one in found] == [
        "manifest", "features", "training-infonce_seed0", "training-infonce_seed1", "semivariogram", "semivariogram_local",
        "training-decayed_seed0", "training-decayed_seed1", "evaluation", "regions",
    ]  # fmt: skip
    assert not any(one.is_reused for one in found) and all(one.seconds is None for one in found)
    assert snapshot(run.folder) == before


def test_a_stage_that_two_notebooks_ask_for_stands_under_the_first_that_is_executed(make_run):
    run = make_run("training.strategies=infonce,decayed", "training.seeds=0", "study=null")
    by_notebook = {one.stage: one.notebook for one in plan.steps(run, ["02", "04"])}
    assert by_notebook["training-infonce_seed0"] == "02"
    assert {one.notebook for one in plan.steps(run, ["04"])} == {"04"}
    assert "training-infonce_seed0" in {one.stage for one in plan.steps(run, ["04"])}


def test_a_notebooks_own_time_is_what_its_stages_leave_of_it(make_run):
    run = make_run()
    assert plan.besides_seconds(run, "03_semivariogram") is None
    cell = nbformat.v4.new_code_cell("fit()", id="cell")
    said = "made    semivariogram in 20.0 s\nmade    semivariogram_local in 2.5 s\nreused  features (made before)\n"
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=said)]
    (run.folder / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), run.folder / "notebooks" / "03_semivariogram.ipynb")
    known = {"machine": runs.machine(), "seconds_by_notebook": {"03_semivariogram": 30.0}}
    runs.write_json(run.folder / "manifest.json", known)
    assert plan.besides_seconds(run, "03_semivariogram") == 7.5


def test_an_estimate_says_what_it_does_not_know():
    known, unknown = plan.Estimate(600.0, True), plan.Estimate(0.0, False)
    assert [str(one) for one in (known, unknown, known + unknown)] == ["about 10 min", "not known", "10 min and what is not known"]


def test_a_run_of_which_nothing_is_there_is_planned_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "RESULTS", tmp_path / "none")
    found = plan.steps(Run(load("smoke", ("device=cpu",)), tmp_path / "run"), ["01", "02", "03", "04", "05"])
    assert {"manifest", "features", "semivariogram", "training-infonce_seed0", "evaluation", "regions"} <= {one.stage for one in found}
    assert not any(one.is_reused for one in found)
    assert not (tmp_path / "run").exists()


def test_a_damaged_manifest_of_a_study_does_not_stop_the_plan_of_its_repair(make_run):
    run = make_run()
    assert run.settings.study is not None
    run.manifest.write_bytes(run.manifest.read_bytes()[:900])
    found = plan.steps(run, ["01", "02", "03", "04", "05", "07", "08"])
    assert found and not any(step.is_reused for step in found)
