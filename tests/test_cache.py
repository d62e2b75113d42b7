"""A stage is reused exactly while nothing that it depends on has changed and its files are whole."""

from __future__ import annotations

import errno
import json
import os
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import write_later

from lib.method import geodesy
from lib.runs import Run, cache, cached, files
from lib.settings import load

code = import_module("lib.runs.code")


class Stage:
    """A stage that copies its input, and counts how often it is made."""

    def __init__(self, folder: Path) -> None:
        self.run, self.count = Run(load("smoke"), folder), 0
        self.source, self.output = folder / "source.txt", folder / "deep" / "output.txt"
        self.scratch = folder / "unfinished"
        folder.mkdir(parents=True, exist_ok=True)
        write_later(self.source, "one")

    def make(self) -> None:
        self.count += 1
        self.output.parent.mkdir(exist_ok=True)
        write_later(self.output, self.source.read_text())

    def __call__(self, **changes: object) -> bool:
        given = {"make": self.make, "inputs": [self.source], "outputs": [self.output], "settings": {"a": 1}}
        return cached(self.run, "copy", **(given | {"code": [geodesy.distance_km]} | changes))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "run")


def test_what_was_made_is_reused_and_said_once(stage: Stage, capsys: pytest.CaptureFixture) -> None:
    assert [stage(), stage(), stage()] == [False, True, True] and stage.count == 1
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["made", "copy"]]
    cache._told.clear()  # as in another process
    assert [stage(), stage()] == [True, True]
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["reused", "copy"]]


def test_the_project_may_be_moved(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "photos.txt").write_text("one")
    monkeypatch.setattr(cache, "PROJECT", tmp_path / "here")
    assert not stage(inputs=[tmp_path / "here" / "photos.txt"])
    moved = (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(cache, "PROJECT", moved)
    assert stage(inputs=[moved / "photos.txt"]) and cache.is_current(stage.run, "copy")


CHANGES = {
    "settings": 'other settings (a 1, now 2)',
    "input": "another input (source.txt)",
    "output bytes": "output.txt is damaged: its checksum is not the one that was noted",
    "output gone": "output.txt is gone",
    "receipt": "its receipt is damaged",
    "code": "other code (lib.method.geodesy:distance_km)",
    "more code": "other code (lib.method.geodesy:unit_vectors)",
    "package": 'another package (numpy',
}  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_it_is_made_again_when_something_changes_and_says_what(
    stage: Stage, changed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stage()
    changes = {}
    if changed == "settings":
        changes = {"settings": {"a": 2}}
    elif changed == "input":
        write_later(stage.source, "two")
    elif changed == "output bytes":
        write_later(stage.output, "onE")
    elif changed == "output gone":
        stage.output.unlink()
    elif changed == "receipt":
        stage.run.receipt("copy").write_text("{ half a rec")
    elif changed == "code":
        monkeypatch.setattr(code, "digest", lambda name: "another")
    elif changed == "more code":
        changes = {"code": [geodesy.distance_km, geodesy.unit_vectors]}
    elif changed == "package":
        monkeypatch.setattr(code, "version", lambda name: "another")
    assert stage(**changes) is False and stage.count == 2
    said = capsys.readouterr().out.replace(f"{stage.output.parent}/", "")
    assert f"again   copy: {CHANGES[changed]}" in said
    assert stage(**changes) is True and stage.output.read_text() == stage.source.read_text()


def test_a_stage_depends_on_the_packages_that_its_code_uses_and_on_no_other(stage: Stage) -> None:
    stage()
    used = json.loads(stage.run.receipt("copy").read_text())["needs"]["packages"]
    assert {"numpy", "torch"} <= set(used) and not {"transformers", "pandas", "gstools"} & set(used)


def test_a_failure_leaves_no_receipt_even_where_there_was_one(stage: Stage) -> None:
    stage()

    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stage(make=fail, settings={"a": 2})
    assert not stage.run.receipt("copy").exists() and stage() is False


def test_what_is_missing_is_named(stage: Stage) -> None:
    with pytest.raises(FileNotFoundError, match="output.txt"):
        stage(make=lambda: None)
    stage.source.unlink()
    with pytest.raises(FileNotFoundError, match="source.txt"):
        stage()
    assert stage.count == 0


def test_a_second_process_reads_no_file_again_whose_size_time_and_inode_are_those_noted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = stage.run.folder.with_name("places.csv")
    write_later(outside, "a")
    stage(inputs=[outside])
    files.remembered.clear()  # as in another process
    cache._recall.cache_clear()
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert stage(inputs=[outside]) is True


def test_a_run_that_moved_is_whole(stage: Stage, tmp_path: Path) -> None:
    stage()
    stage.run.folder.rename(tmp_path / "moved")
    moved = Stage(tmp_path / "moved")
    write_later(moved.source, "one")
    assert moved() is True


def test_unfinished_work_of_the_same_key_is_kept_and_of_another_is_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def stop() -> None:
        found.append((stage.scratch / "half").exists())
        (stage.scratch / "half").write_text("half")
        raise KeyboardInterrupt

    def attempt(**changes: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            stage(make=stop, scratch=stage.scratch, **changes)

    attempt()
    attempt()
    attempt(settings={"a": 2})
    monkeypatch.setattr(code, "version", lambda name: "another")  # an upgrade between kill and resume
    attempt(settings={"a": 2})
    assert found == [False, True, False, False]
    with monkeypatch.context() as patch:  # as NFS does with a folder whose files are open
        patch.setattr(os, "rmdir", Mock(side_effect=OSError(errno.ENOTEMPTY, "Directory not empty")))
        assert stage(scratch=stage.scratch, settings={"a": 2}) is False
    assert stage(scratch=stage.scratch, settings={"a": 2}) is True and not stage.scratch.exists()


def test_a_stage_is_current_until_code_packages_inputs_or_outputs_change(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cache.is_current(stage.run, "copy")
    stage()
    assert cache.is_current(stage.run, "copy")
    for patched in ("digest", "version"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, patched, lambda name: "another")
            assert not cache.is_current(stage.run, "copy")
    for path in (stage.source, stage.output):
        kept = path.read_text()
        write_later(path, "other")
        assert not cache.is_current(stage.run, "copy")
        write_later(path, kept)
        assert cache.is_current(stage.run, "copy")
    os.remove(stage.output)
    assert not cache.is_current(stage.run, "copy")
