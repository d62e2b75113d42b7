"""What tests/test_kills.py lets die: the stages of a small run, each in a fork of one process that has
imported everything.

``kills_program.py FOLDER SEED MOMENTS POINTS``: an undisturbed run; then, for each stage, MOMENTS kills
(SIGKILL) at random times and POINTS kills at chosen calls of ``fsync`` and ``rename`` (0: at every one; -1:
nobody is killed), each followed by a restart of this stage and all after it. Prints one JSON line a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import NarrowLocationEncoder
from PIL import Image

from lib.data import datasets, features
from lib.data.sphere import uniform_on_sphere
from lib.evaluate import evaluation
from lib.method import model
from lib.method.geodesy import unit_vectors
from lib.runs import Run
from lib.settings import load
from lib.train import checkpoints, curve, training

STAGES: dict[str, Callable[[Run], object]] = {
    "manifest": datasets.prepare,
    "features": features.extract,
    "semivariogram": curve.fit_run,
    "training": lambda run: training.train_all(run, run.settings.training.strategies),
    "evaluation": evaluation.evaluate,
}
SETTINGS = [
    "dataset=folder", "backbone.image_px=32", "backbone.shard_size=16", "backbone.batch_size=8",
    "backbone.precision=float32", "semivariogram.lag_width_rad=0.1", "training.precision=float32",
    "training.batch_size=24", "training.queue_size=24", "training.epochs=3", "training.seeds=0",
    "training.strategies=infonce,decayed", "training.validate_every=1", "evaluation.bootstrap=100",
    "evaluation.gallery=train", "device=cpu",
]  # fmt: skip


def write_photos(folder: Path) -> None:
    """96 small photos whose colours vary smoothly over the sphere, and the table of their places."""
    draw = np.random.default_rng(0)
    places = uniform_on_sphere(96, draw, 70.0)
    waves = np.sin(2.0 * unit_vectors(places) @ draw.normal(size=(3, 12)))
    (folder / "photos").mkdir(parents=True)
    table = pd.DataFrame(places, columns=["latitude", "longitude"])
    table["path"] = [f"{number:02d}.png" for number in range(96)]
    table["split"], table["continent"] = np.repeat(["train", "validation", "test"], [64, 12, 20]), "Europe"
    table.to_csv(folder / "places.csv", index=False)
    shades = (127 + 120 * waves).astype(np.uint8).reshape(96, 2, 2, 3)
    for name, shade in zip(table["path"], shades, strict=True):
        Image.fromarray(shade).resize((32, 32), Image.Resampling.BILINEAR).save(folder / "photos" / name)


def fork(run: Run, stages: list[str], die_at: int | None = None) -> int:
    """Process number of a child that makes ``stages``, and kills itself at its ``die_at``-th call of fsync or
    rename."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            calls = _count_calls(die_at)
            for stage in stages:
                STAGES[stage](run)
            (run.folder.parent / "calls").write_text(str(len(calls)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _count_calls(die_at: int | None) -> list[str]:
    """A list that grows by each call of fsync and rename; the ``die_at``-th never happens."""
    calls: list[str] = []

    def counted(name: str, real: Callable, *arguments: object) -> object:
        calls.append(name)
        if len(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    for name in ("fsync", "replace"):
        setattr(os, name, partial(counted, name, getattr(os, name)))
    return calls


def finish(child: int) -> int:
    """Exit status of ``child``, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """What a run is: every file below ``folder`` but receipts, which have the time in them, unfinished and
    hidden files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {
        name: path.read_bytes()
        for name, path in sorted(named.items())
        if not name.startswith(("receipts", ".")) and "unfinished/" not in name and "/." not in name
    }


def attempt(
    folder: Path, run: Run, stage: str, whole: dict[str, bytes], seconds: float | None, die_at: int | None
) -> dict | None:
    """One kill, after ``seconds`` or at the ``die_at``-th call, and the restart: what was found; None where
    the child was done before."""
    shutil.rmtree(run.folder, ignore_errors=True)
    shutil.copytree(folder / "before" / stage, run.folder)
    child = fork(run, [stage], die_at)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    if finish(child) != -signal.SIGKILL:
        return None
    torn = [name for name, content in contents(run.folder).items() if content != whole.get(name)]
    status = finish(fork(run, list(STAGES)[list(STAGES).index(stage) :]))
    after = contents(run.folder)
    lost = [name for name in {*whole, *after} if whole.get(name) != after.get(name)]
    left = [str(path) for name in ("*.part*", "*unfinished") for path in run.folder.rglob(name)]
    asked = {"stage": stage, "seconds": seconds, "call": die_at}
    return asked | {"torn": torn, "status": status, "lost": lost, "left": left}


def main(folder: Path, seed: int, moments: int, points: int) -> None:
    torch.set_num_threads(1)
    checkpoints.SAVE_EVERY_S = 0.0
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    write_photos(folder)
    named = [f"dataset.root={folder / 'photos'}", f"dataset.csv={folder / 'places.csv'}"]
    run = Run(load("smoke", [*SETTINGS[:1], *named, *SETTINGS[1:]]), folder / "run")
    run.folder.mkdir()
    seconds, calls = {}, {}
    for stage in STAGES:
        shutil.copytree(run.folder, folder / "before" / stage)
        started = time.perf_counter()
        if finish(fork(run, [stage])):
            sys.exit(f"the undisturbed run fails at {stage}")
        seconds[stage], calls[stage] = time.perf_counter() - started, int((folder / "calls").read_text())
    whole, draw = contents(run.folder), random.Random(seed)  # noqa: S311
    for stage in STAGES if points >= 0 else ():
        done, longest = 0, seconds[stage]
        while done < moments:
            found = attempt(folder, run, stage, whole, draw.uniform(0.0, longest), None)
            if found is None:
                longest *= 0.9  # this time it was quicker
                continue
            done += 1
            print(json.dumps(found), flush=True)
        every = range(1, calls[stage] + 1)
        for call in every if points == 0 else sorted(draw.sample(every, min(points, len(every)))):
            found = attempt(folder, run, stage, whole, None, call)
            print(json.dumps(found or {"stage": stage, "call": call, "status": "not killed"}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
