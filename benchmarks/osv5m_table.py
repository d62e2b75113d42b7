"""Memory and time of making OSV5M's manifest: ``python -m benchmarks.osv5m_table 5000000`` rows.

Tables and archives are made up, with the real ones' columns and width of a row; the archives' members are
empty. Five million rows need 4 GB of disk and some minutes before the measurement begins.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.harness import measure
from lib.data import datasets, osv5m
from lib.data.sphere import uniform_on_sphere
from lib.runs import Run
from lib.settings import load

SHARD = 50_000
READ = {"country": "NZ", "region": "Chatham Islands", "sub-region": "", "city": "Waitangi"}
READ |= {name: "0.123456789012345" for name in osv5m.COLUMNS if name not in {*READ, "id", *osv5m.LIMITS}}
PASSED_OVER = {"thumb_original_url": "x" * 300, "cell": '"(0, 8)"', "creator_username": "somebody"}


def write(root: Path, split: str, count: int, generator: np.random.Generator) -> int:
    """Table and archives of a split with ``count`` photos; the number of archives."""
    ids = 10**14 + (split == "test") + 97 * generator.permutation(count)
    rest = ",".join((READ | PASSED_OVER).values())
    (root / "images" / split).mkdir(parents=True)
    with (root / f"{split}.csv").open("w") as table:
        table.write(",".join(["id", *osv5m.LIMITS, *READ, *PASSED_OVER]) + "\n")
        for some in np.array_split(ids, -(-count // SHARD)):
            places = zip(some, uniform_on_sphere(len(some), generator, 70.0), strict=True)
            table.writelines(f"{one},{at[0]:.12f},{at[1]:.12f},{rest}\n" for one, at in places)
    shards = np.array_split(np.sort(ids), min(osv5m.SHARDS[split], -(-count // SHARD)))
    for number, own in enumerate(shards):
        with zipfile.ZipFile(root / "images" / split / f"{number:02d}.zip", "w") as file:
            for one in own:
                file.writestr(f"{number:02d}/{one}.jpg", b"")
    return len(shards)


def main(count: int) -> None:
    """Make and measure it; one line."""
    with tempfile.TemporaryDirectory() as folder:
        root, generator = Path(folder) / "osv5m", np.random.default_rng(0)
        chosen = [
            f"{one}_shards={write(root, one, n, generator)}" for one, n in (("train", count), ("test", 99))
        ]
        given = ["dataset=osv5m", f"dataset.root={root}", "dataset.download=false", "dataset.validation=9"]
        run = Run(load("smoke", [*given, *(f"dataset.{one}" for one in chosen)]), Path(folder) / "run")
        found = measure(lambda: datasets.prepare(run))
        print(f"{count:,} rows: {found.seconds:.0f} s, at most {(found.peak_bytes or 0) / 1e9:.2f} GB more")


if __name__ == "__main__":
    main(int(sys.argv[1]))
