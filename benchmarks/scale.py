"""Millions of photos in 4 GiB: a run's manifest and features on disk, its semivariogram, and the data path of
a training's epoch.

Features are half precision, 768 dimensions, in a sparse file: 7.7 GB at five million photos, all zeros, which
no step can know. The process that is measured may not have more than ``LIMIT_BYTES`` of memory of its own;
the system ends it where it asks for more.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Measured, Result, Row, measure, row
from lib.settings import PROJECT

SIZES = (625_000, 1_250_000, 2_500_000, 5_000_000)
DIMENSION, BATCH, PHOTOS = 768, 512, 50_000
LIMIT_BYTES = 4 * 2**30


def write_run(folder: Path, count: int) -> None:
    """Manifest and features of ``count`` photos, nearly all of them for training."""
    import pandas as pd

    from lib.data.sphere import uniform_on_sphere

    coordinates, numbers = uniform_on_sphere(count, np.random.default_rng(0), 70.0), np.arange(count)
    text = pd.Series(numbers).astype(str)
    table = pd.DataFrame({"id": text, "path": "images/train/00.zip/" + text + ".jpg", "continent": "Europe"})
    table[["latitude", "longitude"]] = coordinates
    table["split"] = np.where(numbers < count - 64, "train", "validation")
    table.to_parquet(folder / "manifest.parquet", index=False)
    shape = (count, DIMENSION)
    np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape).flush()


def read(folder: Path) -> Any:
    """The training data of the photos in ``folder``."""
    import torch

    from benchmarks.reweighting import CURVE
    from lib.data import manifest
    from lib.data.features import Features
    from lib.train.data import TrainingData

    photos = manifest.read(folder / "manifest.parquet", manifest.PLACES)
    frozen = Features(np.load(folder / "features.npy", mmap_mode="r"), torch.zeros(DIMENSION))
    places, rows = manifest.coordinates(photos), manifest.rows_of(photos, "train")
    others = manifest.rows_of(photos, "validation")
    return TrainingData(frozen, rows, others, torch.from_numpy(places), places[rows], CURVE, 1.0)


def parts(folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of each part, measured in this process; and those of the bare reading of the rows."""
    import torch

    from lib.method.empirical import draw_photos, exact
    from lib.train.data import batches

    reading = measure(partial(read, folder))
    data = reading.value
    rows = data.train_rows[draw_photos(len(data.train_rows), PHOTOS)]
    places = data.coordinates_deg[rows].numpy()
    sums = measure(partial(exact, lambda chosen: data.frozen.unit(rows[chosen]), places))
    if not np.allclose(sums.value.gamma[sums.value.pairs > 0], 1.0):
        raise ValueError("features of zeros differ by 1 at every lag")

    def epoch() -> int:
        steps = 0
        for rows in batches(data.train_rows, BATCH, torch.Generator().manual_seed(0)):
            data.batch(1, rows, slice(0, BATCH), torch.device("cpu"))
            steps += 1
        return steps

    def bare() -> int:
        order = torch.randperm(len(data.train_rows), generator=torch.Generator().manual_seed(0)).numpy()
        starts = range(0, len(order), BATCH)
        return sum(len(data.frozen.stored[order[start : start + BATCH]]) for start in starts)

    bare()
    found = {
        "reading the run": reading,
        "semivariogram of 50,000 photos": sums,
        "an epoch's data": measure(epoch),
        "bare": measure(bare),
    }
    return {name: {"seconds": one.seconds, "peak_bytes": one.peak_bytes} for name, one in found.items()}


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, each in a process of its own. The floor of an epoch's data is the bare
    reading of the rows."""
    rows: list[Row] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for task in ("write", "measure"):
                command = [sys.executable, "-m", "benchmarks.scale", task, folder, str(size)]
                done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)  # noqa: S603
                if done.returncode:
                    raise RuntimeError(f"{size:,} photos, {task}: {done.stderr[-2_000:]}")
        found = json.loads(done.stdout)
        floor = Measured(None, **found.pop("bare"))
        for name, one in found.items():
            above = floor if name == "an epoch's data" else None
            rows.append(row(size, Measured(None, **one), None, None, above, part=name))
    goal = "semivariogram of 50,000 photos and an epoch's data path within 4 GiB (the system's own limit)"
    met = all((one.ours_peak_bytes or 0) < LIMIT_BYTES for one in rows)
    return Result("scale", "photos", goal, met, rows)


def main(task: str, folder: str, size: str) -> None:
    """What the processes do."""
    if task == "write":
        write_run(Path(folder), int(size))
        return
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    print(json.dumps(parts(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
