"""Whether a finished run is as it was finished, and whether its results follow from its predictions.

``python -m lib.runs verify results/quick``: exit status 0 where all is well, 1 with a line a fault. Every
checksum of provenance.json is taken anew; accuracy.csv and comparison.csv are derived anew from
predictions.parquet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.runs import Run, is_output
from lib.runs.files import READING_ERRORS, checksum, one_line
from lib.runs.machine import print_anywhere
from lib.runs.provenance import read_provenance


def checksums(folder: Path, written: dict) -> Iterator[str]:
    """Faults: files that are missing, or differ from what ``written`` (provenance.json) says, or came
    later."""
    for name, noted in written["outputs"].items():
        try:
            if checksum(folder / name) != noted:
                yield f"{name} is not what was written: its checksum differs"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            yield f"{name} cannot be read: {one_line(error)}"
    there = (path for path in sorted(folder.rglob("*")) if path.is_file() and is_output(path, folder))
    for name in (str(path.relative_to(folder)) for path in there):
        if name not in written["outputs"]:
            yield f"{name} came later: provenance.json does not name it"
    for stage in written.get("outdated") or []:
        yield (
            f"{stage} was made with other settings, inputs or code than provenance.json names: run all "
            "notebooks"
        )


def derived(run: Run) -> Iterator[str]:
    """Faults: tables of the run that do not follow from its predictions."""
    try:
        predictions = pd.read_parquet(run.predictions)
        tables = {
            "accuracy": evaluation.accuracy(predictions),
            "comparison": evaluation.comparison(predictions, run.settings.evaluation),
        }
    except READING_ERRORS as error:
        yield (
            f"predictions.parquet: no table can be derived from it: {type(error).__name__}: {one_line(error)}"
        )
        return
    for name, table in tables.items():
        there = (
            run.table(name).read_text(encoding="utf-8", errors="replace") if run.table(name).is_file() else ""
        )
        if there != (wanted := table.to_csv(index=False)):
            lines = zip(there.splitlines() or [""], wanted.splitlines(), strict=False)
            found, right = next(
                ((one, other) for one, other in lines if one != other), ("too short or long", "")
            )
            yield (
                f"tables/{name}.csv does not follow from the predictions: {found[:80]!r} should be "
                f"{right[:80]!r}"
            )


def verify(folder: Path) -> list[str]:
    """A sentence for each fault of the finished run in ``folder``; none where it is as it was finished.

    Raises:
        BundleError: there is no finished run.
    """
    run = Run.finished(folder)
    return [*checksums(folder, read_provenance(folder)), *derived(run)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 where every checksum and every derived table is right, 1 with a line a fault."""
    print_anywhere()
    parser = argparse.ArgumentParser("python -m lib.runs", description="Check a finished run.")
    parser.add_argument("verify", choices=["verify"])
    parser.add_argument("run", type=Path, help="folder of a finished run, such as results/quick")
    folder = parser.parse_args(arguments).run
    try:
        faults = verify(folder)
    except BundleError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"FAULT  {fault}", file=sys.stderr)
    print(f"{folder}: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
