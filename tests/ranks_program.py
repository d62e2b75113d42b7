"""What tests/test_ranks.py lets one process, or two that torchrun starts, do with a run's folder."""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from conftest import NarrowLocationEncoder

from lib.data import datasets, features, sampling
from lib.evaluate import evaluation
from lib.method import model
from lib.runs import Run, ranks
from lib.settings import load
from lib.train import training


def main(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    ranks.start()
    run = Run(load("smoke", overrides), folder)
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    for name, most in (("exact", 10**9), ("sampled", 4_000)):
        sums = sampling.estimate(
            lambda rows: frozen.unit(rows),
            datasets.manifest.coordinates(manifest),
            0.05,
            max_pairs=most,
            sample_pairs=4_000,
            among_ranks=True,
        )
        if ranks.rank() == 0:
            np.savez(folder / f"{name}.npz", **asdict(sums))
    training.train_all(run, run.settings.training.strategies)
    ranks.wait()
    evaluation.evaluate(run)
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
