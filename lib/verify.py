"""Whether a finished run's files are what its manifest.json says, and whether its tables follow from its predictions.

``python -m lib.runs verify results/quick`` (or ``python -m lib.verify results/quick``): exit status 0 where all is well, 1 with a line
a fault. Every checksum of manifest.json is taken anew; then every table that follows from predictions.parquet, manifest.parquet or
the semivariogram's sums is derived anew and compared byte for byte. Tables that need a training to be derived are named; their
checksums alone speak for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.data import datasets
from lib.evaluate import evaluation
from lib.runs import Run, is_output
from lib.runs.files import READING_ERRORS, ArtefactError, checksum, one_line
from lib.train import curve


class Finding(NamedTuple):
    """A file of the run, what was found about it, and whether that is a fault."""

    name: str
    what: str
    is_fault: bool


def checksums(folder: Path) -> Iterator[Finding]:
    """Files that are missing, or differ from what manifest.json says, or came later.

    Raises:
        ArtefactError: there is no manifest.json, or it names no outputs.
    """
    path = folder / "manifest.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        names = dict(written["outputs"].items())
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is not there: give the folder of a run that run_all.sh has finished") from error
    except READING_ERRORS as error:
        raise ArtefactError(f"{path}: damaged, or not a run's manifest ({one_line(error)}); run run_all.sh again") from error
    for name, sum_ in names.items():
        try:
            if not (folder / name).is_file():
                yield Finding(name, "is missing", True)
            elif checksum(folder / name) != sum_:
                yield Finding(name, "is not what was written: its checksum differs", True)
        except OSError as error:
            yield Finding(name, f"cannot be read: {one_line(error)}", True)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and is_output(path, folder) and name not in names:
            yield Finding(name, "came later: manifest.json does not name it", True)
    for stage in written.get("outdated") or []:
        yield Finding(stage, "was made with other settings, inputs or code than manifest.json names: run all notebooks", True)


def derivations(run: Run) -> dict[str, Callable[[], pd.DataFrame]]:
    """Table -> how it follows from the run's predictions, manifest and sums."""
    predictions = pd.read_parquet(run.predictions)
    manifest = datasets.read(run)

    found: dict[str, Callable[[], pd.DataFrame]] = {
        "accuracy": lambda: evaluation.accuracy(predictions),
        "comparison": lambda: evaluation.comparison(predictions, run.settings.evaluation),
        "bounds": lambda: evaluation.bounds(run, manifest, predictions["split"].unique()),
        "by_continent": lambda: evaluation.by_group(predictions, manifest.set_index("id")["continent"], "continent"),
        "by_latitude": lambda: evaluation.by_group(predictions, evaluation.latitude_band(manifest), "latitude_band"),
        "semivariogram": lambda: curve.load_empirical(run.empirical).table(),
    }
    return found


def tables(run: Run) -> Iterator[Finding]:
    """For each table of the run: whether it is what its sources give, or that it is checked by its checksum alone."""
    try:
        known = derivations(run)
    except READING_ERRORS as error:
        yield Finding("predictions.parquet", f"no table can be derived from it: {type(error).__name__}: {one_line(error)}", True)
        return
    for path in sorted((run.folder / "tables").glob("*.csv")):
        name = f"tables/{path.name}"
        if path.stem not in known:
            yield Finding(name, "does not follow from the predictions alone: checked by its checksum alone", False)
            continue
        try:
            derived = known[path.stem]()
        except READING_ERRORS as error:
            yield Finding(name, f"cannot be derived: {type(error).__name__}: {one_line(error)}", True)
            continue
        if path.read_bytes() == derived.to_csv(index=False).encode():
            yield Finding(name, "follows from its sources, byte for byte", False)
        else:
            yield Finding(name, f"does not follow from its sources: {_difference(path, derived)}", True)


def _difference(path: Path, derived: pd.DataFrame) -> str:
    """The first line of the table at ``path`` that is not the derived one's."""
    there, now = path.read_text(encoding="utf-8", errors="replace").splitlines(), derived.to_csv(index=False).splitlines()
    for number, (one, other) in enumerate(zip(there, now, strict=False), 1):
        if one != other:
            return f"line {number} is {one[:80]!r} and should be {other[:80]!r}"
    return f"it has {len(there)} lines and should have {len(now)}"


def verify(folder: Path) -> list[Finding]:
    """Everything that can be said about the run in ``folder``; that it is as it was finished, where no finding is a fault.

    Raises:
        ArtefactError: there is no finished run.
    """
    found = list(checksums(folder))
    return found + list(tables(Run.finished(folder)))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``verify`` before the folder may be left out."""
    parser = argparse.ArgumentParser("python -m lib.runs", description="Check a finished run.")
    parser.add_argument("verify", nargs="?", choices=["verify"], help="the one thing that there is to do")
    parser.add_argument("run", type=Path, help="folder of a finished run, such as results/quick")
    given = list(sys.argv[1:] if arguments is None else arguments)
    return parser.parse_args(given if given[:1] == ["verify"] or given[:1] in (["-h"], ["--help"]) else ["verify", *given])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 where every checksum and every table is right, 1 with a line a fault."""
    options = parse(arguments)
    try:
        found = verify(options.run)
    except ArtefactError as error:
        print(f"lib.runs verify: {error}", file=sys.stderr)
        return 1
    faults = [one for one in found if one.is_fault]
    for one in found:
        print(f"{'FAULT' if one.is_fault else 'ok   '}  {one.name} {one.what}", file=sys.stderr if one.is_fault else sys.stdout)
    noted: dict[str, Any] = json.loads((options.run / "manifest.json").read_text(encoding="utf-8"))["outputs"]
    print(f"{len(noted)} checksums, {sum(one.name.startswith('tables/') for one in found)} tables, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
