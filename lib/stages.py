"""The stages that take long, without notebooks, by as many processes as torchrun starts: ``torchrun -m lib.stages PROFILE FOLDER [SETTING…]``.

The photos are made ready by one process; features are extracted by all, each taking every k-th shard; the semivariogram is
estimated by all, each on a share of the pairs; each training is done by one, all at the same time, those of a study
(:mod:`lib.study`) too, or all work on each (``training.parallel``); then each searches a part of the gallery for all photos. The
notebooks find what has been made.
``NPROC=8 ./run_all.sh …`` does both. Every process needs the same results folder, so one machine, or a shared disk.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lib import datasets, evaluation, features, locks, ranks, semivariogram, study, training, variography
from lib.backbones import BackboneError
from lib.datasets.manifest import ManifestError
from lib.features import FeatureError
from lib.gallery import GalleryError
from lib.model import ModelError
from lib.negatives import StrategyError
from lib.runs import ArtefactError, Run
from lib.settings import SettingsError

EXPECTED = (
    SettingsError, ArtefactError, ManifestError, BackboneError, FeatureError, StrategyError, GalleryError, ModelError,
    training.TrainingError, study.StudyError, semivariogram.SemivariogramError, variography.VariographyError,
)  # fmt: skip


def make(run: Run) -> None:
    """Manifest, features, semivariogram, trainings and predictions of ``run``, made together or reused."""
    datasets.prepare(run)
    features.extract(run)
    semivariogram.fit_run(run)
    variography.fit_local(run)
    training.train_all(run, run.settings.training.strategies)
    for part in study.PARTS if run.settings.study is not None else ():
        study.make(run, part)
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
