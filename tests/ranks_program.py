"""What tests/test_ranks.py lets one process, or two that torchrun starts, do with a run's folder."""

import sys
from pathlib import Path

import torch
from conftest import NarrowLocationEncoder, write_world

from lib.evaluate import evaluation
from lib.method import model
from lib.runs import Run, ranks
from lib.settings import load
from lib.train import training


def main(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    ranks.start()
    run = Run(load("smoke", [*overrides, f"dataset.root={folder.parent / 'windows'}"]), folder)
    if ranks.rank() == 0 and not run.manifest.exists():
        write_world(run)
    ranks.wait()
    training.train_all(run, run.settings.training.strategies)
    ranks.wait()
    if ranks.rank() == 0:
        evaluation.evaluate(run)
    ranks.wait()
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
