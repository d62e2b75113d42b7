"""Statements about runs: a stage is reused exactly while nothing it depends on has changed, and files appear
whole."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import Runs

from lib import runs
from lib.method import geodesy
from lib.method.errors import BundleError
from lib.runs import Run

machine_module, provenance_module, run_module = map(
    import_module, ("lib.runs.machine", "lib.runs.provenance", "lib.runs.run")
)
"""By name: in lib.runs functions of the same names stand before them."""


class Stage:
    """A stage that copies its input, and counts how often it is made."""

    def __init__(self, run: Run) -> None:
        self.run, self.count = run, 0
        self.source, self.output = run.folder / "source.txt", run.folder / "deep" / "output.txt"
        run.folder.mkdir(parents=True, exist_ok=True)
        write(self.source, "one")

    def make(self) -> None:
        self.count += 1
        self.output.parent.mkdir(exist_ok=True)
        write(self.output, self.source.read_text())

    def __call__(self, **changes: object) -> bool:
        given = {
            "make": self.make,
            "inputs": [self.source],
            "outputs": [self.output],
            "settings": {"a": 1},
            "code": [geodesy.distance_km],
        }
        return self.run.produce("copy", **(given | changes))


def write(path: Path, text: str) -> None:
    """Write ``text`` with a time of change of its own: two writes may fall into one tick of the file system's
    clock."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    if path.stat().st_mtime_ns <= before:
        os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


@pytest.fixture
def stage(make_run: Runs) -> Stage:
    return Stage(make_run())


class TestProduce:
    def test_what_was_made_is_reused(self, stage: Stage) -> None:
        assert [stage(), stage(), stage()] == [False, True, True]
        assert stage.count == 1
        assert [report.split()[:2] for report in stage.run.reports] == [
            ["made", "copy"],
            ["reused", "copy"],
            ["reused", "copy"],
        ]

    def test_another_process_reuses_it_as_well(self, stage: Stage) -> None:
        stage()
        again = Stage(Run(stage.run.settings, stage.run.folder))
        write(again.source, "one")
        assert again() is True

    @pytest.mark.parametrize(
        "changed",
        [
            "settings",
            "input",
            "output bytes",
            "output length",
            "output gone",
            "receipt",
            "code",
            "modules",
            "package",
        ],
    )
    def test_it_is_made_again_when_something_changes(
        self, stage: Stage, changed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage()
        changes = {}
        if changed == "settings":
            changes = {"settings": {"a": 2}}
        elif changed == "input":
            write(stage.source, "two")
        elif changed == "output bytes":
            write(stage.output, "onE")
        elif changed == "output length":
            write(stage.output, "on")
        elif changed == "output gone":
            stage.output.unlink()
        elif changed == "receipt":
            stage.run.receipt("copy").write_text("{ half a rec")
        elif changed == "code":
            monkeypatch.setattr(run_module, "code_digest", lambda name: "another")
        elif changed == "package":
            monkeypatch.setattr(run_module.importlib.metadata, "version", lambda name: "another")
        elif changed == "modules":
            changes = {"code": [geodesy.distance_km, geodesy.unit_vectors]}
        assert stage(**changes) is False
        assert stage.count == 2
        assert stage(**changes) is True
        assert stage.output.read_text() == stage.source.read_text()

    def test_a_failure_leaves_no_receipt_even_where_there_was_one(self, stage: Stage) -> None:
        stage()

        def fail() -> None:
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            stage(make=fail, settings={"a": 2})
        assert not stage.run.receipt("copy").exists()
        assert stage() is False

    def test_a_missing_input_is_named_and_nothing_is_made(self, stage: Stage) -> None:
        stage.source.unlink()
        with pytest.raises(BundleError, match=r"source\.txt is not there"):
            stage()
        assert stage.count == 0

    def test_the_receipt_says_what_was_made_of_what(self, stage: Stage) -> None:
        stage()
        receipt = json.loads(stage.run.receipt("copy").read_text())
        assert (receipt["stage"], receipt["settings"]) == ("copy", {"a": 1})
        assert receipt["outputs"] == {"deep/output.txt": hashlib.sha256(b"one").hexdigest()}


class TestWriting:
    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "file.txt").write_text("old")
        with pytest.raises(KeyError), runs.writing(tmp_path / "file.txt") as aside:
            aside.write_text("half")
            raise KeyError
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file.txt": "old"}


class TestGenerators:
    def test_one_for_each_seed_and_purpose(self) -> None:
        draws = {
            (seed, what): torch.rand(1, generator=runs.generator(seed, what)).item()
            for seed in (0, 1)
            for what in ("noise", "batches")
        }
        assert len(set(draws.values())) == 4
        assert torch.rand(1, generator=runs.generator(0, "noise")).item() == draws[0, "noise"]


class TestRun:
    def test_what_is_missing_is_named_with_the_notebook_that_makes_it(self, make_run: Runs) -> None:
        run = make_run()
        assert run.require(run.manifest, "01") == run.manifest
        with pytest.raises(BundleError, match=r"predictions\.parquet is not there: run notebook 05_x"):
            run.require(run.predictions, "05_x")


def test_provenance_names_every_output_with_its_checksum(make_run: Runs) -> None:
    stage = Stage(make_run())
    stage()
    known = runs.provenance(stage.run, {"01": 1.5})
    assert known["outputs"]["deep/output.txt"] == hashlib.sha256(b"one").hexdigest()
    assert not any(name.startswith("receipts") for name in known["outputs"])
    assert known["seconds_by_notebook"] == {"01": 1.5}
    assert set(known["seconds_by_stage"]) == {"copy"}
    assert known["settings"]["training"]["batch_size"] == 32
    assert known["packages"]["torch"].startswith("2.")
    json.dumps(known)


def test_the_commit_is_this_checkouts_and_not_that_of_a_repository_around_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(provenance_module, "PROJECT", tmp_path / "copy")
    assert provenance_module._git_state() == {"commit": None, "dirty": None}
