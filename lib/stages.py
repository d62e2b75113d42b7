"""``torchrun -m lib.stages PROFILE FOLDER [SETTING…]``: several processes make what takes long.

One process prepares the photos; all share the features out; one fits the curve; each training is done by one
process, or all work on each (``training.parallel``). The notebooks then find it. ``NPROC=8 ./run_all.sh …``
does both. Every process needs the same results folder.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from unittest.mock import patch

from lib.data import datasets, features
from lib.method.errors import BundleError
from lib.runs import Run, locks, ranks
from lib.runs.machine import print_anywhere
from lib.train import curve, training

USAGE = "torchrun -m lib.stages quick results/quick training.epochs=4"


def make(run: Run) -> None:
    """Make or reuse what takes long, with all processes."""
    datasets.prepare(run)
    features.extract(run)
    ranks.in_turn(lambda: curve.fit_run(run))
    training.train_all(run, training.strategies_of(run))
    ranks.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """``arguments``: profile, folder, settings. Exit status 1 with a sentence on a mistake."""
    print_anywhere()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) < 2:
        print(f"lib.stages: give a profile, a folder and settings: {USAGE}", file=sys.stderr)
        return 1
    profile, folder, *overrides = given
    try:
        ranks.start()
        run = Run.open(profile, folder, overrides)
        # the ranks know one another by a token, and the first one holds the lock
        token = {locks.VARIABLE: ranks.from_first(uuid.uuid4().hex)}
        lock = locks.holding(run.folder) if ranks.rank() == 0 else nullcontext()
        with patch.dict(os.environ, token), lock:
            ranks.wait()
            make(run)
    except (BundleError, OSError) as error:
        print(f"lib.stages, rank {ranks.rank()}: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
