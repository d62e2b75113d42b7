"""Measure a call's seconds and memory, and keep what a benchmark found as JSON."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from lib.runs import write_json
from lib.runs.machine import machine as of_run
from lib.settings import PROJECT

FOLDER = PROJECT / "results" / "benchmarks"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "gstools", "geoclip")
SAMPLING_SECONDS = 0.002


class Measured(NamedTuple):
    """What a call returned, its seconds (the least of several calls), and the most memory it held beyond what
    was there before."""

    value: Any
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Row:
    """One size. ``ratio`` is reference over ours; None: the reference would take too long at this size, and
    was not run.

    ``floor_seconds``: the work that cannot be avoided, measured in the same run; ``floor_ratio`` is ours over
    that. ``part``: what of several things the row is about.
    """

    size: int
    ours_seconds: float
    reference_seconds: float | None
    ratio: float | None
    ours_peak_bytes: int | None
    reference_peak_bytes: int | None
    max_difference: float | None
    floor_seconds: float | None = None
    floor_ratio: float | None = None
    part: str = ""


@dataclass(frozen=True)
class Result:
    """What a benchmark found; ``goal`` says what is compared and the bound."""

    name: str
    unit: str
    goal: str
    met: bool
    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})

    def save(self, folder: Path = FOLDER) -> Path:
        """Write as ``folder``/NAME.json; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        write_json(path, asdict(self))
        return path

    def table(self) -> str:
        """The rows, for reading."""
        frame = pd.DataFrame([asdict(row) for row in self.rows]).replace("", None).dropna(axis=1, how="all")
        for name in frame.columns.intersection(["ours_peak_bytes", "reference_peak_bytes"]):
            frame[name.replace("bytes", "mb")] = pd.to_numeric(frame.pop(name)).div(1e6).round(0)
        return frame.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}")


def row(
    size: int,
    ours: Measured,
    reference: Measured | None,
    difference: float | None,
    floor: Measured | None = None,
    part: str = "",
) -> Row:
    """A :class:`Row` of measured calls."""
    theirs, ratio = reference and reference.seconds, reference and reference.seconds / ours.seconds
    least, above = floor and floor.seconds, floor and ours.seconds / floor.seconds
    peaks = ours.peak_bytes, reference and reference.peak_bytes
    return Row(size, ours.seconds, theirs, ratio, *peaks, difference, least, above, part)


def measure(call: Callable[[], Any], repeats: int = 1) -> Measured:
    """Call ``repeats`` times: the last value, the least seconds, the largest peak of memory (None where it
    cannot be read)."""
    return in_turn(repeats, call)[0]


def in_turn(repeats: int, *calls: Callable[[], Any]) -> list[Measured]:
    """:func:`measure` each of ``calls``, round by round, so that a machine that slows down slows them all
    down."""
    found: list[list[Measured]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, rounds in zip(calls, found, strict=True):
            with _Memory() as memory:
                started = time.perf_counter()
                value = call()
                seconds = time.perf_counter() - started
            rounds.append(Measured(value, seconds, memory.peak))
    return [_best(rounds) for rounds in found]


def _best(rounds: list[Measured]) -> Measured:
    peaks = [one.peak_bytes for one in rounds]
    return Measured(
        rounds[-1].value, min(one.seconds for one in rounds), None if None in peaks else max(peaks)
    )


class _Memory:
    """Watches this process's resident memory from a thread, and a GPU's by torch's own count.

    What a call adds to either counts.
    """

    before_on_card = 0

    def __enter__(self) -> _Memory:
        self.before, self.most, self.done = _resident(), 0, threading.Event()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
            self.before_on_card = torch.cuda.memory_allocated()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(SAMPLING_SECONDS):
            self.most = max(self.most, _resident() or 0)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()
        self.most = max(self.most, _resident() or 0)

    @property
    def peak(self) -> int | None:
        on_card = 0
        if torch.cuda.is_initialized():
            on_card = torch.cuda.max_memory_allocated() - self.before_on_card
        return None if self.before is None else max(0, self.most - self.before) + on_card


def _resident() -> int | None:
    """Bytes of this process's own; pages of mapped files, which the system takes back as it needs them, do
    not count."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # only Linux has it
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, accelerator and threads."""
    known = of_run()
    return {name: known[name] for name in ("cores", "processor", "accelerator")} | {
        "threads": torch.get_num_threads()
    }
