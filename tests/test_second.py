"""Statements about the second study: what it trains, what it chooses, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import adopt

from lib.method.errors import BundleError
from lib.runs import Run
from lib.train import training
from study import kept, second

SIZES = {"train": 96, "validation": 30, "validation_blocked": 30, "test": 30, "test_blocked": 40}
SMALL = ("training.batch_size=48", "training.epochs=1", "evaluation.gallery=train")


@pytest.fixture
def run(make_run: Callable[..., Run], narrow: None) -> Run:
    made = make_run(*SMALL, sizes=SIZES)
    photos = pd.read_parquet(made.manifest)
    photos.assign(cell=np.arange(len(photos)) // 10).to_parquet(made.manifest, index=False)
    adopt(made)
    return made


def test_a_trial_is_trained_once_and_tells_each_photos_error(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [
        second.Trial("margin", second.MARGIN, {"frequencies": kind}, 0) for kind in ("curve", "geoclip")
    ]
    for _ in range(2):
        second.make_all(run, trials)
    assert capsys.readouterr().out.count("made    trial-") == 2
    told = second.predictions(run, trials[:1])
    assert set(told["split"]) == set(second.VALIDATION) and len(told) == 60
    other = second.predictions(run, trials[1:])
    assert not np.allclose(told["error_km"], other["error_km"])
    assert 0.0 <= second.score(told) <= 1.0


def test_a_trials_model_is_that_of_a_training(run: Run) -> None:
    trial = second.Trial("margin", second.MARGIN, {"beta": 3.0}, 4)
    second.make_all(run, [trial])
    job = training.Job.of(run, second.MARGIN, 4, {"beta": 3.0}, "same")
    training.train_job(job)
    history = pd.read_csv(run.history("same", 4))
    told = second.predictions(run, [trial]).query("split == 'validation'")["error_km"]
    assert history["validation_acc_750km"].iloc[-1] == pytest.approx((told <= 750.0).mean())


def test_the_strength_doubles_until_the_score_has_fallen_twice(run: Run) -> None:
    search, seen = second.Search(run, run.table("tries")), []
    heights = {2.0: 0.1, 4.0: 0.5, 8.0: 0.4, 16.0: 0.3, 32.0: 0.9, 64.0: 1.0}

    def scores(phase: str, tries: list) -> list[float]:
        seen.extend(changes["beta"] for _, _, changes in tries)
        return [heights[changes["beta"]] for _, _, changes in tries]

    search.scores = scores
    chosen = {"infonce geoclip": {}, "semivariance_margin geoclip": {"beta": 1.0}}
    second._choose_strength(search, chosen)
    assert seen == [2.0, 4.0, 8.0, 16.0] and chosen["semivariance_margin geoclip"]["beta"] == 4.0
    assert chosen["infonce geoclip"] == {}


def test_every_arm_is_searched_alike(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(second, "CHOSEN", tmp_path / "second.json")
    monkeypatch.setattr(second, "KEPT", tmp_path)
    monkeypatch.setattr(second, "stopping_epochs", lambda run: 1)
    monkeypatch.setattr(second, "make_all", lambda run, trials: None)
    monkeypatch.setattr(second, "predictions", lambda run, trials: list(trials))
    monkeypatch.setattr(second, "score", lambda trials: 0.5)
    second.tune(run)
    tries = pd.read_csv(tmp_path / "second_tries.csv")
    rates = tries[tries["phase"] == "rate"].groupby("arm").size()
    assert len(rates) == len(second.ARMS) == 15 and set(rates) == {4}
    assert set(tries[tries["phase"] == "temperature"].groupby("arm").size()) == {2}  # learned was tried
    chosen = second.chosen_settings()
    assert chosen["arms"]["infonce geoclip"].keys() >= {"learning_rate", "temperature"}
    assert chosen["arms"]["semivariance_margin hand_set"]["frequencies"] == chosen["triple"]
    for trial in (*second.final_trials(), *second.factorial_trials(), *second.sharper_trials()):
        run.settings.training.changed(trial.changes)


def test_tuning_in_miniature_trains_each_try_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"EPOCHS": (8,), "TRIPLES": ([1, 4, 16], [2, 4, 8]), "RATES": (1e-3,), "TEMPERATURES": (None,)}
    small |= {"LENGTHS_KM": (200.0,), "STRENGTHS": (4.0,), "ARMS": second.PRIMARY, "SEARCH_SEEDS": (0,)}
    for name, value in (small | {"CHOSEN": tmp_path / "second.json", "KEPT": tmp_path}).items():
        monkeypatch.setattr(second, name, value)
    monkeypatch.setattr(second, "open_world", lambda *_: run)
    said = []
    for _ in range(2):
        assert second.main(["tune"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0].count("made    tr") > len(second.PRIMARY) and "made    tr" not in said[1]
    assert set(second.chosen_settings()["arms"]) == {f"{name} {kind}" for name, kind in second.PRIMARY}


def test_a_part_that_is_none_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert second.main(["tunes"]) == 1
    assert "tune|factorial|sharper|sharpest|final|relief|keep|tables" in capsys.readouterr().err


def test_what_did_best_of_each_sharper_margin_is_judged_and_a_plain_margin_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms = {f"{name} geoclip": {"beta": 8.0} for name in second.STRATEGIES}
    monkeypatch.setattr(second, "chosen_settings", lambda: {"arms": arms})
    best = {"untied_margin 3", "residual_margin 0", "kriging_targets 2", "annealed_margin 2"}
    told = pd.DataFrame(
        {"split": split, "strategy": f"{name} {number}"}
        | {"acc_200km": 0.5 + 0.1 * (f"{name} {number}" in best) + 0.001 * number, "acc_750km": 0.2}
        for name, some in second.sharper_options().items()
        for number, _ in enumerate(some)
        for split in second.VALIDATION
    )
    found = {trial.strategy: trial.changes for trial in second.sharpest(told)}
    assert found["untied_margin"]["alpha"] == 16.0  # twice beta, the best but beta itself
    assert found["residual_margin"]["alpha"] == 2.0 and found["kriging_targets"]["alpha"] == 0.2
    assert found["annealed_margin"] == {"beta": 8.0}  # as long and as large as the final table's


def test_what_is_kept_is_the_whole_seeds_of_the_primary_arms(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arms = {f"{name} {kind}": {"beta": number} for number, (name, kind) in enumerate(second.ARMS, 1)}
    monkeypatch.setattr(second, "chosen_settings", lambda: {"arms": arms})
    monkeypatch.setattr(second, "open_world", lambda world: run)
    monkeypatch.setattr(second, "KEPT", tmp_path)
    monkeypatch.setattr(kept, "PREDICTIONS", tmp_path / "predictions.parquet")
    with pytest.raises(BundleError, match="no seed has all primary arms"):
        second.keep()
    wanted = [trial for trial in second.final_trials() if trial.seed < 12]
    wanted.remove(next(trial for trial in wanted if trial.seed == 11))  # so seed 11 is not whole
    for trial in wanted:
        _write_errors(run, trial)
    second.keep()
    told = kept.predictions("blue_marble")
    assert set(told["seed"]) == {10}
    assert set(told["strategy"]) == {f"{a} {b}" for a, b in kept.PRIMARY}
    assert len(told) == len(kept.PRIMARY) * 70 and told["cell"].notna().all()
    levels = pd.read_csv(tmp_path / "second_levels.csv")
    assert set(levels["strategy"]) == {*arms, "ceiling"}
    explored = pd.read_csv(tmp_path / "second_exploratory.csv")
    assert len(explored) == 2 * len(second.EXPLORATORY) * len(kept.ENDPOINTS) and "p_holm" not in explored


def _write_errors(run: Run, trial: second.Trial) -> None:
    photos = pd.read_parquet(run.manifest).query("split in @second.TEST")
    drawn = np.random.default_rng(int(trial.changes["beta"]))
    path = trial.path(run, second.TEST)
    path.parent.mkdir(exist_ok=True)
    table = photos[["id", "split"]].assign(error_km=400.0 * np.exp(drawn.normal(size=len(photos))))
    table.assign(temperature=0.1).to_parquet(path, index=False)
