"""Whatever bytes a file holds, its reader returns or says one sentence; and the property tests hold beyond
their default examples."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import python


def fuzzed(folder: Path, *, seconds: float, seed: int, examples: int) -> list[dict]:
    """What tests/fuzz_program.py, which says what the numbers mean, has tried and found."""
    program = Path(__file__).with_name("fuzz_program.py")
    done = python(program, folder, seconds, seed, examples)
    found = sorted((folder / "found").glob("*.txt")) if (folder / "found").exists() else []
    said = [path.read_text()[-1_500:] for path in found[:3]]
    assert done.returncode == 0, (seed, said, done.stderr[-1_500:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(kinds: list[dict], least: int) -> None:
    assert len([one for one in kinds if one.get("kind", "").startswith("damaged")]) >= 13
    assert all(one["examples"] >= least and one["bad_rounds"] == 0 for one in kinds)


def test_a_few_damaged_files_of_every_kind(tmp_path: Path) -> None:
    check(fuzzed(tmp_path, seconds=0.1, seed=0, examples=15), least=15)


@pytest.mark.thorough
def test_damaged_files_for_five_minutes(tmp_path: Path) -> None:
    check(fuzzed(tmp_path, seconds=300, seed=int.from_bytes(os.urandom(3)), examples=300), least=600)


def test_a_reader_that_breaks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The fuzzer itself: an exception, a silence, a crash and a sentence of two lines each come to light."""
    import fuzz_program

    def of(read: object) -> fuzz_program.Reader:
        return fuzz_program.Reader(tmp_path / "file", [b"good"], read)

    def two_lines() -> None:
        raise fuzz_program.BundleError("one\ntwo")

    readers = {
        "right": of(lambda: 1),
        "wrong": of(lambda: {}[0]),
        "late": of(lambda: fuzz_program.time.sleep(9)),
        "crash": of(lambda: os.kill(os.getpid(), signal.SIGKILL)),
        "lines": of(two_lines),
    }
    monkeypatch.setattr(fuzz_program, "LONGEST_S", 1)
    monkeypatch.setattr(fuzz_program, "properties", dict)
    monkeypatch.setattr(fuzz_program, "readers", lambda _: readers)
    assert fuzz_program.main(tmp_path, 0.01, 0, 1) == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["kind"]: one["bad_rounds"] for one in said[:-1]} == {
        f"damaged: {name}": int(name != "right") for name in readers
    }
    assert list((tmp_path / "found").glob("damaged_crash*.bin"))
