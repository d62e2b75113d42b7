"""What a run says in the terminal: one bar for all notebooks, with stage and time left; everything else goes to a file.

At a terminal one line is drawn again and again. Where there is none (a log, continuous integration) a notebook is two plain
lines. What the notebooks themselves print is kept under the run's folder, ``logs/``, without what progress bars overwrote.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lib.plan import duration

BAR = re.compile(r"^\s*(?P<stage>[^:]+): +(?P<share>\d+)%")
"""How a progress bar (tqdm) begins."""
STAGE = re.compile(r"^(?:made|reused|again) +(?P<stage>[^\s:]+)")
"""How a stage says what became of it."""
PAUSE_S = 0.5
SHOWN_NAMES = 3
"""Names of stages that a line gives; the log has all."""


class Listener:
    """A file for what a notebook prints: whole lines go to a log with the time, what is being done to ``stage``."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.stage, self._rest = path, "", ""
        self._log = path.open("w", encoding="utf-8")

    def write(self, text: str) -> int:
        """Take ``text`` as it comes, in pieces."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._keep(line.rstrip("\r").rpartition("\r")[2].rstrip())
        for piece in re.split(r"[\r\n]", text):
            if found := STAGE.match(piece):
                self.stage = found["stage"]
            elif found := BAR.match(piece):
                self.stage = f"{found['stage']} {found['share']} %"
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._log.closed:
            self._log.flush()

    def close(self) -> None:
        """The end of the log, once."""
        if self._log.closed:
            return
        self._keep(self._rest.rpartition("\r")[2].rstrip())
        self._log.close()

    def _keep(self, line: str) -> None:
        if line:
            self._log.write(f"{datetime.now():%H:%M:%S}  {line}\n")


class Progress:
    """The bar over all notebooks of a run.

    Attributes:
        names: the notebooks, without ending.
        expected: seconds of each, as far as any are known; of another machine they are taken as proportions only.
        is_of_here: whether they were measured on this machine.
        logs: folder of the notebooks' logs.
    """

    def __init__(self, names: Sequence[str], expected: Mapping[str, float], is_of_here: bool, logs: Path, stream: TextIO) -> None:
        self.names, self.expected, self.is_of_here, self.logs, self.stream = list(names), expected, is_of_here, logs, stream
        self.is_live = stream.isatty()
        self.finished: dict[str, float] = {}
        self.current, self.listener = "", None
        self._started = self._begun = time.perf_counter()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        if self.is_live:
            self._ticker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self.is_live:
            self._ticker.join()
            self._clear()
        if self.listener is not None:
            self.listener.close()

    def begin(self, name: str) -> Listener:
        """The notebook ``name`` begins; what it prints goes to the file that is returned."""
        self.current, self._begun = name, time.perf_counter()
        self.listener = Listener(self.logs / f"{name}.log")
        if not self.is_live:
            self._print(f"{self._position()} {name} …")
        return self.listener

    def end(self, lines: Sequence[str]) -> float:
        """The current notebook is done, whose stages said ``lines``; its seconds."""
        seconds = time.perf_counter() - self._begun
        position, name = self._position(), self.current
        with self._lock:
            self.finished[name] = seconds
        self.listener.close()
        left = self.seconds_left()
        told = [f"{summary(lines)}; {duration(seconds)}" + ("" if left is None or len(self.finished) == len(self.names) else f", about {duration(left)} left")]  # fmt: skip
        told += [line for line in lines if line.startswith(("left out", "not evaluated", "again"))][:5]
        with self._lock:
            if self.is_live:
                self._clear()
                told[0] = f"{position} {name}: {told[0]}"
            for line in told:
                self._print(line if self.is_live and line is told[0] else f"      {line}")
        return seconds

    def seconds_left(self) -> float | None:
        """Seconds until the last notebook is done; None while that cannot be said."""
        if any(name not in self.expected for name in self.names):
            return None
        done = sum(self.expected[name] for name in self.finished)
        if not self.is_of_here and done == 0:
            return None
        scale = 1.0 if self.is_of_here else sum(self.finished.values()) / done
        ahead = scale * sum(self.expected[name] for name in self.names if name not in self.finished)
        now = 0.0 if self.current in self.finished else time.perf_counter() - self._begun
        return max(0.0, ahead - min(now, scale * self.expected.get(self.current, 0.0)))

    def share(self) -> float:
        """How much is done, 0..1: by expected time where it is known, else by notebooks."""
        if any(name not in self.expected for name in self.names) or sum(self.expected.values()) == 0:
            return len(self.finished) / len(self.names)
        left, spent = self.seconds_left(), time.perf_counter() - self._started
        if left is None:
            return 0.0
        return 1.0 if len(self.finished) == len(self.names) else spent / (spent + left + 1e-9)

    def line(self) -> str:
        """The bar as it stands."""
        width, left = 20, self.seconds_left()
        full = round(width * self.share())
        stage = self.listener.stage if self.listener else ""
        spent = duration(time.perf_counter() - self._started)
        until = "" if left is None else f", about {duration(left)} left"
        where = f"{self._position()} {self.current}" + (f": {stage}" if stage else "")
        return f"|{'#' * full}{'-' * (width - full)}| {where} ({spent}{until})"

    def _position(self) -> str:
        return f"[{self.names.index(self.current) + 1}/{len(self.names)}]" if self.current else ""

    def _tick(self) -> None:
        drawn = ""
        while not self._stop.wait(PAUSE_S):
            with self._lock:
                line = self.line()[: shutil.get_terminal_size().columns - 1] if self.current else ""
                if line != drawn and self.current not in self.finished:
                    drawn = line
                    self.stream.write(f"\r\033[K{line}")
                    self.stream.flush()

    def _clear(self) -> None:
        self.stream.write("\r\033[K")
        self.stream.flush()

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def summary(lines: Sequence[str]) -> str:
    """What became of the stages, in a few words: ``made 2 (manifest, features), reused 1``."""
    parts = []
    for word in ("made", "reused"):
        names = [line.split()[1] for line in lines if line.startswith(f"{word} ")]
        if names and word == "made":
            shown = ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
            parts.append(f"made {len(names)} ({shown})")
        elif names:
            parts.append(f"reused {len(names)}")
    return ", ".join(parts) or "drawn"
