"""The stages that take long, without notebooks, by as many processes as torchrun starts: ``torchrun -m lib.stages PROFILE FOLDER [SETTING…]``.

The photos are made ready by one process; features are extracted by all, each taking every k-th shard; the semivariogram is
estimated by all, each on a share of the pairs; each training is done by one, all at the same time, those of a study
(:mod:`study.sweeps`) too, or all work on each (``training.parallel``); then each searches a part of the gallery for all photos. The
notebooks find what has been made.
``NPROC=8 ./run_all.sh …`` does both. Every process needs the same results folder, so one machine, or a shared disk.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lib.data import datasets, features
from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.runs import Run, locks, ranks
from lib.train import curve, training

EXPECTED = (BundleError,)


def make(run: Run) -> None:
    """Manifest, features, semivariogram, trainings and predictions of ``run``, made together or reused."""
    datasets.prepare(run)
    features.extract(run)
    curve.fit_run(run)
    training.train_all(run, run.settings.training.strategies)
    if run.settings.study is not None:
        importlib.import_module("study.sweeps").make_all(run)
    ranks.wait()
    evaluation.evaluate(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """``arguments``: profile, folder, and settings such as ``training.epochs=4``. Exit status 1 with a sentence on a mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) < 2:
        print("lib.stages: give a profile, a folder and settings: torchrun -m lib.stages quick results/quick training.epochs=4", file=sys.stderr)
        return 1
    profile, folder, *overrides = given
    ranks.start()
    try:
        run = Run.open(profile, folder, overrides)
        with ranks.first_enters(locks.holding(run.folder)):
            make(run)
    except EXPECTED as error:
        print(f"lib.stages, rank {ranks.rank()}: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
