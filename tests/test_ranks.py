"""Two processes share out the batches of a training."""

import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from conftest import python
from safetensors.numpy import load_file

from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.runs import Run, ranks
from lib.settings import load
from lib.train import training

SETTINGS = [
    "device=cpu", "training.precision=float32", "backbone.precision=float32", "training.batch_size=32",
    "training.seeds=0", "training.queue_size=40", "training.epochs=3",
    "training.strategies=infonce,decayed,semivariogram,hcl,distance_soft", "training.validate_every=10",
    "training.parallel=batches",
]  # fmt: skip
LABELS = ["infonce", "decayed", "semivariogram", "hcl", "distance_soft"]


def work(folder: Path, processes: int, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).with_name("ranks_program.py")
    return python(program, folder, *SETTINGS, *more, processes=processes, **variables)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of what one process and two have made of the same manifest, features and curve."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"of{processes}") / "run"
        done = work(folder, processes)
        assert done.returncode == 0, done.stderr[-3_000:]
        assert done.stdout.count("made    training-") == len(LABELS), done.stdout
        folders.append(folder)
    return folders


@pytest.mark.parametrize("label", LABELS)
def test_two_ranks_with_half_a_batch_each_train_what_one_trains_with_the_whole(
    both: list[Path], label: str
) -> None:
    one, two = (load_file(folder / "checkpoints" / f"{label}_seed0.safetensors") for folder in both)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, two[name], rtol=1e-4, atol=2e-5, err_msg=name)
    losses = [pd.read_csv(folder / "history" / f"{label}_seed0.csv")["loss"] for folder in both]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_predictions_and_tables_are_those_of_one_rank(both: list[Path]) -> None:
    one, two = (pd.read_parquet(folder / "predictions.parquet") for folder in both)
    assert len(one) == (len(LABELS) + 1) * 40 and one["error_km"].std() > 100.0
    pd.testing.assert_frame_equal(one, two)
    for name in ("accuracy", "comparison", "bounds", "by_continent"):
        texts = [(folder / "tables" / f"{name}.csv").read_text() for folder in both]
        assert texts[0] == texts[1]


def test_one_rank_more_or_less_makes_no_training_anew(both: list[Path]) -> None:
    done = work(both[1], 1)
    said = done.stdout + done.stderr[-2_000:]
    assert done.returncode == 0 and done.stdout.count("reused  training-") == len(LABELS), said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_killed_goes_on_at_the_same_epoch_everywhere_to_the_same_bits(
    both: list[Path], tmp_path: Path, processes: int
) -> None:
    folder, one = tmp_path / "run", "training.strategies=infonce"
    assert work(folder, processes, one, DIES_AFTER="2").returncode != 0
    assert not (folder / "checkpoints/infonce_seed0.safetensors").exists()
    done = work(folder, processes, one)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("infonce, seed 0: goes on after epoch 2 of 3") == 1
    for name in ("checkpoints/infonce_seed0.safetensors", "history/infonce_seed0.csv"):
        assert (folder / name).read_bytes() == (both[processes - 1] / name).read_bytes()
    assert not list(folder.rglob("*unfinished*"))


@pytest.mark.parametrize(("local_rank", "cards", "taken"), [(0, 1, 0), (3, 1, 0), (3, 4, 3), (5, 4, 1)])
def test_ranks_beyond_the_cards_of_a_machine_share_them(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, cards: int, taken: int
) -> None:
    chosen = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert ranks.cuda_device() == torch.device("cuda", taken) and chosen == [torch.device("cuda", taken)]


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    shared = Run(load("smoke", SETTINGS), Path("run"))
    with pytest.raises(BundleError, match="a batch of 33 cannot be shared out among 2 processes"):
        training._shared_encoder(GeoCLIP(4), shared, 33)


def test_ranks_that_do_not_meet_say_so_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in (meeting | {"TORCHELASTIC_RUN_ID": "test"}).items():
        monkeypatch.setenv(name, value)
    assert timedelta(minutes=15) >= ranks.MEETING
    monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=1))
    with pytest.raises(BundleError, match=r"did not meet at nowhere.invalid within 0:00:01: give torchrun"):
        ranks.start()


def test_a_rank_whose_others_have_ended_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def barrier() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "barrier", barrier)
    with pytest.raises(BundleError, match="another process has ended, .* closed by peer"):
        ranks.wait()
