"""Each benchmark at sizes that take a moment: ours and the reference agree, and the file has what is
promised. Nothing is timed."""

import json
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness, osv5m_table
from benchmarks.__main__ import NAMES, main

SMALL = {
    "semivariogram": ((40, 90), {}),
    "scale": ((300,), {}),
    "pipeline": ((90,), {}),
    "retrieval": ((3, 70), {"places": 900}),
    "reweighting": ((0, 24), {"batch": 16}),
    "training": ((4, 8), {}),
    "features": ((3, 6), {}),
}


LARGEST_DIFFERENCE = {"bfloat16": 0.05}  # a coarser arithmetic than the reference's


def test_every_benchmark_is_tried() -> None:
    assert set(NAMES) == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_ours_and_the_reference_give_the_same_answer(name: str, tmp_path: Path) -> None:
    sizes, more = SMALL[name]
    result = import_module(f"benchmarks.{name}").run(sizes, **more)
    stored = json.loads(result.save(tmp_path).read_text())
    assert {"name", "unit", "goal", "met", "rows", "machine", "versions"} <= stored.keys()
    assert {"cores", "processor", "accelerator"} <= stored["machine"].keys()
    assert isinstance(stored["met"], bool) and set(sizes) <= {row["size"] for row in stored["rows"]}
    measured = {"ours_seconds", "reference_seconds", "ratio", "ours_peak_bytes", "reference_peak_bytes"}
    for row in stored["rows"]:
        assert measured <= row.keys()
        largest = LARGEST_DIFFERENCE.get(row["part"] or name, 2e-5)
        assert row["max_difference"] is None or row["max_difference"] < largest
        ratio = row["ratio"] and row["reference_seconds"] / row["ours_seconds"]
        assert row["ratio"] == (ratio and pytest.approx(ratio))
    assert "ours_seconds" in result.table()


def test_the_memory_that_a_call_holds_is_seen() -> None:
    def call() -> float:
        held = np.ones(20_000_000)
        time.sleep(0.2)
        return held.sum()

    measured = harness.measure(call, repeats=3)  # the system may page others out meanwhile
    assert measured.value == 20_000_000
    assert measured.peak_bytes is None or 100e6 < measured.peak_bytes < 400e6


def test_pages_of_a_mapped_file_are_not_memory_that_a_call_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "zeros.npy", np.zeros(20_000_000))

    def call() -> float:
        mapped = np.load(tmp_path / "zeros.npy", mmap_mode="r")
        total = sum(float(part.sum()) for part in np.split(mapped, 20))
        time.sleep(0.1)
        return total

    peak = harness.measure(call).peak_bytes
    assert peak is None or peak < 50e6


def test_a_manifest_of_made_up_rows_is_made_and_measured(capsys: pytest.CaptureFixture) -> None:
    osv5m_table.main(120)
    assert "120 rows: " in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["retrieval", "nonsense"]) == 1
    told = "there is no benchmark nonsense; there are features, pipeline, retrieval,"
    assert told in capsys.readouterr().err
