"""What tests/test_ranks.py lets one process, or two that torchrun starts, do with a run's folder."""

import os
import signal
import sys
from pathlib import Path

import torch
from conftest import NarrowLocationEncoder, write_world

from lib.evaluate import evaluation
from lib.method import model
from lib.runs import Run, ranks
from lib.settings import load
from lib.train import checkpoints, training

save = checkpoints.State.save


def save_and_die(state: checkpoints.State, path: Path) -> None:
    """Save, as the first rank alone may; be killed after as many epochs as the variable DIES_AFTER says."""
    assert ranks.rank() == 0
    save(state, path)
    if len(state.history) == int(os.environ.get("DIES_AFTER", "0")):
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    checkpoints.SAVE_EVERY_S, checkpoints.State.save = 0.0, save_and_die
    model.geoclip_locations().LocationEncoder = NarrowLocationEncoder
    run = Run(load("smoke", [*overrides, f"dataset.root={folder.parent / 'windows'}"]), folder)
    if os.environ.get("RANK", "0") == "0" and not run.manifest.exists():
        write_world(run)  # alone: ranks that have met prepare a run together
    ranks.start()
    training.train_all(run, run.settings.training.strategies)
    ranks.wait()
    if ranks.rank() == 0:
        evaluation.evaluate(run)
    ranks.wait()
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
