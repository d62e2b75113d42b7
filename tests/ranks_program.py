"""What tests/test_ranks.py lets one process, or two that torchrun starts, do with a run's folder."""

import sys
from pathlib import Path

import torch
from conftest import NarrowLocationEncoder

from lib.data import features
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
    manifest = features.photos(run)
    training.train_all(run, run.settings.training.strategies)
    ranks.wait()
    evaluation.evaluate(run)
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
