"""What a run would compute, what it would reuse, and how long that takes on this machine; nothing is run and nothing is written.

Every stage is asked for as the notebooks ask for it, of a run that only looks up whether the stage's receipt still holds. How
long a stage takes is what it took when it was last made on this machine with the same settings, in whatever run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from lib.data import datasets, features
from lib.evaluate import evaluation, regions
from lib.runs import RESULTS, Run, machine
from lib.train import curve, training
from lib.train.training import Job

MADE = "made    "
"""How the line begins in which a stage says that it was made, and in how many seconds."""
SAME_MACHINE = ("processor", "cores", "accelerator")
"""What of :func:`lib.runs.machine` decides how long something takes."""


@dataclass(frozen=True)
class Step:
    """A stage of a notebook, looked up.

    Attributes:
        notebook: its two digits.
        stage: name of its receipt.
        group: what it is called together with others of its kind, such as ``training decayed``.
        is_reused: whether it is there from the same inputs, settings and code.
        seconds: how long it takes on this machine; 0 where it is reused, None where that is not known.
    """

    notebook: str
    stage: str
    group: str
    is_reused: bool
    seconds: float | None


class _LookedUp(Exception):
    """A stage has been looked up: no error, but the way out of a function that would go on to read what is not there."""


@dataclass(frozen=True)
class Rehearsal(Run):
    """A run that makes nothing: a stage is looked up, and its outputs, if it would be made anew, are not there for later ones."""

    found: list[tuple[str, bool, float | None]] = field(default_factory=list, compare=False)
    pending: set[Path] = field(default_factory=set, compare=False)
    earlier: list[Path] = field(default_factory=list, compare=False)

    def require(self, path: Path, made_by: str) -> Path:
        """``path``, whether it is there or not."""
        return path

    def refuse_outdated(self, stage: str, inputs: Iterable[Path], settings: Mapping[str, Any], code: Iterable[str]) -> None:
        """Nothing: what is outdated would be made anew by then."""

    def produce(
        self,
        stage: str,
        *,
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        settings: Mapping[str, Any] | None = None,
        code: Iterable[str] = (),
        **_: Any,
    ) -> bool:
        """Note what would become of the stage; never returns.

        Raises:
            _LookedUp: always.
        """
        outputs, inputs, code = list(outputs), list(inputs), list(code)
        is_there = all(path.exists() and path not in self.pending for path in inputs)
        is_reused = is_there and self.has_made(stage, outputs=outputs, inputs=inputs, settings=settings, code=code)
        if not is_reused:
            self.pending.update(outputs)
        seconds = 0.0 if is_reused else known_seconds(stage, settings or {}, [self.folder, *self.earlier])
        self.found.append((stage, is_reused, seconds))
        raise _LookedUp


def steps(run: Run, numbers: Iterable[str]) -> list[Step]:
    """The stages of the notebooks ``numbers``, in order, each under the first of them that asks for it.

    A stage that reads what is made anew counts as computed, although the same bits may come out, which it would then reuse. Of
    notebook 08 the noisy and other worlds and the simulation are not looked into: they are runs of their own.
    """
    earlier = [path for path in sorted(RESULTS.glob("*")) if (path / "receipts").is_dir() and path != run.folder]
    rehearsal, numbers = Rehearsal(run.settings, run.folder, earlier=earlier), set(numbers)
    found: list[Step] = []
    for number, group, ask in _asked(rehearsal):
        before = len(rehearsal.found)
        with contextlib.suppress(_LookedUp):
            ask()
        new = rehearsal.found[before:]
        if number in numbers:
            known = {step.stage for step in found}
            found += [Step(number, stage, group or stage, *rest) for stage, *rest in new if stage not in known]
    return found


def _asked(run: Rehearsal) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(notebook, group, what asks for the stage), in the order of the notebooks."""
    own = run.settings.training
    yield "01", "", lambda: _manifest(run)
    yield "01", "", lambda: features.extract(run)
    yield from _trainings(run, "02", ["infonce"])
    yield "03", "", lambda: curve.fit_run(run)
    yield from _trainings(run, "04", own.strategies)
    yield "05", "", lambda: evaluation.evaluate(run)
    yield "05", "", lambda: regions.make(run, pd.DataFrame(), pd.DataFrame())
    if run.settings.study is not None:
        yield from importlib.import_module("study.sweeps").asked(run)


def _manifest(run: Rehearsal) -> None:
    try:
        stage = datasets.stage_of(run)
    except (OSError, ValueError):  # the photos are not there yet: a download, or a folder that does not exist
        stage = {"outputs": [run.manifest], "inputs": [run.folder / "photos that are not there"]}
    run.produce("manifest", **stage)


def _trainings(run: Rehearsal, number: str, names: Iterable[str]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for name in names:
        for seed in run.settings.training.seeds:
            yield number, f"training {name}", partial(training.make, Job.of(run, name, seed))


def known_seconds(stage: str, settings: Mapping[str, Any], folders: Iterable[Path]) -> float | None:
    """How long ``stage`` took with ``settings`` when this machine last made it in one of ``folders``; None: not known."""
    wanted = json.loads(json.dumps(settings, default=str))
    for folder in folders:
        receipt = _read(folder / "receipts" / f"{stage}.json")
        if receipt.get("settings") == wanted and "seconds" in receipt and _is_here(receipt, folder):
            return float(receipt["seconds"])
    return None


def _is_here(receipt: Mapping[str, Any], folder: Path) -> bool:
    """Whether a receipt is of this machine, by what it says itself or by the manifest of its run."""
    there, here = receipt.get("machine") or _read(folder / "manifest.json").get("machine") or {}, machine()
    return all(name in there and there[name] == here[name] for name in SAME_MACHINE)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def besides_seconds(run: Run, notebook: str) -> float | None:
    """Seconds of ``notebook`` (name without ending) besides its stages, when this machine last executed it; None: not known.

    Its wall time, of manifest.json, less what its stages said that they took.
    """
    written = _read(run.folder / "manifest.json")
    wall = (written.get("seconds_by_notebook") or {}).get(notebook)
    executed = run.folder / "notebooks" / f"{notebook}.ipynb"
    if wall is None or not executed.exists() or not _is_here(written, run.folder):
        return None
    made = [line for line in stage_lines(executed) if line.startswith(MADE)]
    return max(0.0, wall - sum(float(line.rpartition(" in ")[2].split()[0]) for line in made))


def stage_lines(executed: Path) -> list[str]:
    """What the stages of an executed notebook said: made or reused, and what was left out."""
    said = ("made ", "reused ", "again ", "left out ", "not evaluated")
    return [
        line
        for cell in nbformat.read(executed, as_version=4).cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
        for line in output.text.splitlines()
        if line.startswith(said)
    ]


@dataclass(frozen=True)
class Estimate:
    """Seconds of something, as far as they are known.

    Attributes:
        seconds: of the parts that are known.
        is_whole: whether all parts are known.
    """

    seconds: float
    is_whole: bool

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.seconds + other.seconds, self.is_whole and other.is_whole)

    def __str__(self) -> str:
        if self.is_whole:
            return f"about {duration(self.seconds)}"
        return f"{duration(self.seconds)} and what is not known" if self.seconds else "not known"


def estimate(run: Run, found: Iterable[Step], notebook: str) -> Estimate:
    """How long ``notebook`` (name without ending) takes here, of which ``found`` are the stages."""
    parts = [one.seconds for one in found if one.notebook == notebook[:2]] + [besides_seconds(run, notebook)]
    return Estimate(sum(one for one in parts if one is not None), None not in parts)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


def table(run: Run, notebooks: Iterable[tuple[str, str]]) -> str:
    """The plan as text: a line a notebook, below it a line a kind of stage.

    Args:
        notebooks: name without ending, and title.
    """
    notebooks = list(notebooks)
    found = steps(run, [name[:2] for name, _ in notebooks])
    lines, total = [], Estimate(0.0, True)
    for name, title in notebooks:
        took = estimate(run, found, name)
        total += took
        lines.append(f"{name[:2]}  {title}: {took}")
        own = [one for one in found if one.notebook == name[:2]]
        lines += [_line(group, [one for one in own if one.group == group]) for group in dict.fromkeys(one.group for one in own)]
    computed = sum(not one.is_reused for one in found)
    lines.append(f"in all {computed} of {len(found)} stages computed, {len(found) - computed} reused; on this machine {total}")
    return "\n".join(lines)


def _line(group: str, some: list[Step]) -> str:
    """One line of the table: what becomes of the stages of one kind."""
    computed = [one for one in some if not one.is_reused]
    what = "reused" if not computed else "computed" if len(computed) == len(some) else f"{len(computed)} of {len(some)} computed"
    took = Estimate(sum(one.seconds or 0.0 for one in computed), all(one.seconds is not None for one in computed))
    count = f" ({len(some)})" if len(some) > 1 else ""
    return f"      {group + count:34}{what:20}{took if computed else ''}".rstrip()
