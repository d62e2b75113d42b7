"""The one table of a run's stages, in their order: what ``--list`` looks up, and what several processes make
together.

``torchrun -m lib.stages PROFILE FOLDER [SETTING…]`` makes what takes long, without notebooks; the notebooks
then find it. Photos are made ready by one process; features, curve and predictions are shared out; each
training is done by one process, or all work on each (``training.parallel``). ``NPROC=8 ./run_all.sh …`` does
both. Every process needs the same results folder.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lib.data import datasets, features
from lib.evaluate import evaluation, regions
from lib.method.errors import BundleError
from lib.runs import Run, locks, ranks
from lib.runs.machine import print_anywhere
from lib.train import curve, training


@dataclass(frozen=True)
class Rehearsal(Run):
    """A run that makes nothing: each stage is looked up, and what it would make anew counts as not there for
    later ones."""

    found: dict[str, bool] = field(default_factory=dict, compare=False)
    pending: set[Path] = field(default_factory=set, compare=False)

    def require(self, path: Path, made_by: str = "") -> Path:
        """``path``, whether it is there or not."""
        return path

    def refuse_outdated(self, stage: str, **_: Any) -> None:
        """Nothing: what is outdated would be made anew by then."""

    def produce(
        self,
        stage: str,
        *,
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        by: str = "",
        **depends: Any,
    ) -> bool:
        """Note whether the stage would be reused.

        Raises:
            _LookedUp: always, but for trainings, after which nothing is read.
        """
        depends.pop("make", None)
        outputs, inputs = list(outputs), list(inputs)
        is_there = all(path.exists() and path not in self.pending for path in inputs)
        is_reused = is_there and self.has_made(stage, outputs=outputs, inputs=inputs, **depends)
        self.pending.update(() if is_reused else outputs)
        self.found[stage] = is_reused
        if by != "this rank":
            raise _LookedUp
        return is_reused


class _LookedUp(Exception):
    """The way out of a function that would go on to read what is not there; no error."""


def _manifest(run: Rehearsal) -> None:
    try:
        stage = datasets.stage_of(run)
    except (OSError, ValueError):  # the photos are not there yet: a download, or a folder that does not exist
        stage = {"outputs": [run.manifest], "inputs": [run.folder / "photos that are not there"]}
    run.produce("manifest", **stage)


def _trainings(run: Run) -> None:
    training.train_all(run, training.strategies_of(run))


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        notebook: number of the notebook that asks for it.
        make: makes it or reuses it.
        is_long: several processes make it before the notebooks do.
        look: looks it up in a rehearsal, where ``make`` would do more than that.
    """

    notebook: str
    make: Callable[[Run], Any]
    is_long: bool = True
    look: Callable[[Rehearsal], Any] | None = None


STAGES = (
    Stage("01", datasets.prepare, look=_manifest),
    Stage("01", features.extract),
    Stage("01", curve.fit_run),
    Stage("02", lambda run: training.train_all(run, ["infonce"]), is_long=False),
    Stage("04", _trainings),
    Stage("05", evaluation.evaluate),
    Stage("05", lambda run: regions.make(run, pd.DataFrame(), pd.DataFrame()), is_long=False),
)


def _study() -> Any:
    """The study's own stages; lib knows them by name only."""
    return importlib.import_module("study.sweeps")


def look_up(run: Run, numbers: Iterable[str]) -> list[tuple[str, str, bool]]:
    """(notebook, stage, whether it would be reused) of the notebooks ``numbers``; nothing is made or written.

    A stage stands under the first of the notebooks that asks for it. One that reads what is made anew counts
    as made anew, although the same bits may come out. Of notebook 08 the other worlds are not looked into:
    they are runs of their own.
    """
    rehearsal, asked, numbers = Rehearsal(run.settings, run.folder), {}, set(numbers)
    for number, look in _looks(rehearsal):
        rehearsal.found.clear()
        with suppress(_LookedUp):
            look()
        for stage, is_reused in rehearsal.found.items() if number in numbers else ():
            asked.setdefault(stage, (number, stage, is_reused))
    return list(asked.values())


def _looks(run: Rehearsal) -> Iterator[tuple[str, Callable[[], Any]]]:
    for stage in STAGES:
        yield stage.notebook, lambda stage=stage: (stage.look or stage.make)(run)
    if run.settings.study is not None:
        yield from ((number, look) for number, _, look in _study().asked(run))


def make(run: Run) -> None:
    """Everything that takes long, made by all processes together, or reused."""
    for stage in STAGES:
        if stage.is_long:
            stage.make(run)
            ranks.wait()
    if run.settings.study is not None:
        _study().make_all(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """``arguments``: profile, folder, and settings such as ``training.epochs=4``. Exit status 1 with a
    sentence on a mistake."""
    print_anywhere()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) < 2:
        usage = "torchrun -m lib.stages quick results/quick training.epochs=4"
        print(f"lib.stages: give a profile, a folder and settings: {usage}", file=sys.stderr)
        return 1
    profile, folder, *overrides = given
    ranks.start()
    try:
        run = Run.open(profile, folder, overrides)
        with ranks.first_enters(locks.holding(run.folder)):
            make(run)
    except (BundleError, OSError) as error:
        print(f"lib.stages, rank {ranks.rank()}: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
