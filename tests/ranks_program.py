"""What tests/test_ranks.py lets one process, or two that torchrun starts, do with a run's folder."""

import sys
from pathlib import Path

import numpy as np
import torch
from conftest import NarrowLocationEncoder

from lib.data import datasets, features
from lib.evaluate import evaluation
from lib.method import model
from lib.runs import Run, ranks
from lib.settings import load
from lib.train import checkpoints, gallery, training


def main(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    ranks.start()
    run = Run(load("smoke", overrides), folder)
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    training.train_all(run, run.settings.training.strategies)
    ranks.wait()
    evaluation.evaluate(run)
    trained = checkpoints.load(run.checkpoint("infonce", 0))
    found = gallery.search(
        trained,
        frozen,
        datasets.manifest.rows_of(manifest, "test"),
        np.array([[10.0, 20.0]]),
        among_ranks=True,
    )
    if ranks.rank() == 0:
        np.save(folder / "few_places.npy", found)
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
