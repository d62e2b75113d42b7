"""A file that is damaged, or was made by other settings or older code, is named with its mend, and never
read."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Runs
from test_locks import OWNER, start

from lib.data import features
from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.runs import Run
from lib.runs import run as run_module
from lib.train import curve, training

pytestmark = pytest.mark.usefixtures("narrow")


def flip(path: Path, draw: random.Random) -> None:
    """One bit of the file turned round; size and times as they were."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    # within this process a checksum is taken once a time of change
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def halve(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


@pytest.fixture
def chain(make_run: Runs) -> Run:
    """A run whose curve, trainings and tables were made by their stages from a manifest and features of the
    test's world."""
    run = make_run(
        "training.epochs=1",
        "training.strategies=infonce,decayed",
        "semivariogram.lag_width_rad=0.1",
        "evaluation.bootstrap=100",
        "evaluation.splits=test,test_blocked",
    )
    content = run.features.read_bytes()
    run.produce(
        "features",
        make=lambda: run.features.write_bytes(content),
        outputs=[run.features],
        settings={"name": run.settings.backbone.name},
        group="backbone",
        code=[features.read],
    )
    go(run)
    return run


def go(run: Run) -> None:
    curve.fit_run(run)
    training.train_all(run, run.settings.training.strategies)
    evaluation.evaluate(run)


OUTPUTS: dict[str, Callable[[Run], Path]] = {
    "semivariogram": lambda run: run.semivariogram,
    "semivariogram's sums": lambda run: run.empirical,
    "checkpoint": lambda run: run.checkpoint("decayed", 0),
    "history": lambda run: run.history("decayed", 0),
    "predictions": lambda run: run.predictions,
    "table": lambda run: run.table("accuracy"),
}


@pytest.mark.parametrize("damage", [flip, halve, empty])
def test_each_damaged_output_is_named_and_made_again_to_the_same_bytes(
    chain: Run, damage: Callable, capsys: pytest.CaptureFixture
) -> None:
    draw = random.Random(int.from_bytes(os.urandom(4)))  # noqa: S311
    for kind, of in OUTPUTS.items():
        path = of(chain)
        whole = path.read_bytes()
        damage(path, draw)
        go(chain)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("again ")]
        assert (
            len(said) == 1 and f"{path} is damaged, its checksum is not the one that was noted" in said[0]
        ), (kind, said)
        assert path.read_bytes() == whole, kind


INPUTS = {
    "features": (lambda run: run.features, training.train_all, "01_data_preparation"),
    "curve": (lambda run: run.semivariogram, training.train_all, "01_data_preparation"),
    "weights": (
        lambda run: run.checkpoint("infonce", 0),
        lambda run, _: evaluation.evaluate(run),
        "02_baseline_geoclip or 04_regularized_training",
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_an_input_that_was_changed_behind_our_back_is_not_read(chain: Run, kind: str) -> None:
    of, stage, notebook = INPUTS[kind]
    flip(of(chain), random.Random(1))  # noqa: S311
    receipt = {path.name: path.read_bytes() for path in chain.folder.glob("receipts/*")}
    with pytest.raises(
        BundleError, match=rf"{of(chain)} is damaged: its checksum .*; run notebook {notebook} again"
    ):
        stage(chain, chain.settings.training.strategies)
    assert {
        path.name: path.read_bytes() for path in chain.folder.glob("receipts/*")
    } == receipt  # nothing was done


def with_settings(run: Run, *overrides: str) -> Run:
    values = run.settings.model_dump(mode="json")
    for override in overrides:
        key, value = override.split("=")
        group, name = key.split(".")
        values[group][name] = json.loads(value)
    return Run(type(run.settings).model_validate(values), run.folder)


def test_weights_of_other_settings_are_refused_with_the_setting(chain: Run) -> None:
    with pytest.raises(
        BundleError,
        match=(
            r"training-infonce_seed0 was made with other settings \(training.epochs 1, now 2\); run "
            r"notebook 02.* or 04"
        ),
    ):
        evaluation.evaluate(with_settings(chain, "training.epochs=2"))


def test_features_and_curves_of_other_settings_are_refused_with_the_setting(chain: Run) -> None:
    with pytest.raises(
        BundleError,
        match=(
            r'features\.npy was made with other settings \(name "efficientnet-lite0", now '
            r'"efficientnet-lite2"\); run notebook 01'
        ),
    ):
        curve.fit_run(with_settings(chain, 'backbone.name="efficientnet-lite2"'))
    with pytest.raises(
        BundleError,
        match=(
            r"semivariogram\.json was made with other settings \(lag_width_rad 0.1, now 0.2\); run notebook "
            r"01"
        ),
    ):
        training.train_all(with_settings(chain, "semivariogram.lag_width_rad=0.2"), ["infonce", "decayed"])


def test_what_older_code_has_made_is_refused_as_an_input_and_made_again_by_its_own_stage(
    chain: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, root = run_module.code_digest, "lib.train.curve:fit_run"
    monkeypatch.setattr(run_module, "code_digest", lambda name: "newer" if name == root else real(name))
    with pytest.raises(
        BundleError,
        match=r"semivariogram\.json was made with other code \(lib\.train\.curve:fit_run\); run notebook 01",
    ):
        training.train_all(chain, ["infonce", "decayed"])
    curve.fit_run(chain)
    assert "again   semivariogram: other code (lib.train.curve:fit_run)" in capsys.readouterr().out
    training.train_all(chain, ["infonce", "decayed"])


@pytest.mark.parametrize("damage", [flip, halve, empty])
def test_a_damaged_receipt_never_passes_for_a_whole_one(chain: Run, damage: Callable) -> None:
    """Whatever is read out of it, the tables stay what they are."""
    whole = {path: path.read_bytes() for path in chain.folder.glob("tables/*.csv")}
    for number, path in enumerate(sorted(chain.folder.glob("receipts/*.json"))):
        if path.stem == "features":  # nothing here makes them
            continue
        damage(path, random.Random(number))  # noqa: S311
        go(chain)
    assert {path: path.read_bytes() for path in chain.folder.glob("tables/*.csv")} == whole


def test_a_run_that_moved_is_whole(chain: Run, tmp_path: Path) -> None:
    chain.folder.rename(tmp_path / "moved")
    moved = Run(chain.settings, tmp_path / "moved")
    go(moved)
    assert moved.reports and all(line.startswith("reused") for line in moved.reports)


def test_only_what_must_be_made_needs_the_lock(chain: Run) -> None:
    """Somebody reads in a notebook while a run writes: what is there is shown, what is not is refused."""
    owner = start(OWNER, chain.folder)
    try:
        assert owner.stdout.readline() == "held\n"
        go(chain)
        with pytest.raises(BundleError, match=rf"process {owner.pid}"):
            curve.fit_run(with_settings(chain, "semivariogram.lag_width_rad=0.2"))
    finally:
        owner.kill()
        owner.wait()


class TestNaNLoss:
    def test_it_stops_the_run_and_leaves_the_ids_of_its_batch(self, make_run: Runs) -> None:
        run = make_run("training.epochs=2", "training.batch_size=24", "backbone.centred=false")
        stored = np.load(run.features)
        stored[7] = np.nan
        np.save(run.features, stored)
        path = run.folder / "failures" / "infonce_seed0.json"
        with pytest.raises(
            BundleError,
            match=(
                rf"infonce, seed 0: the loss is nan at epoch 1, step \d; the ids of the batch are in {path}"
            ),
        ):
            training.train_all(run, ["infonce"])
        found = json.loads(path.read_text())
        assert "p0007" in found["ids"] and len(found["ids"]) == 24 and found["epoch"] == 1
        assert features.photos(run).iloc[found["rows"]]["id"].tolist() == found["ids"]
        assert found["features_not_finite"] == ["p0007"]
        assert not run.checkpoint("infonce", 0).exists() and not list(run.folder.glob("receipts/training*"))
