"""Statements about the third study: what it trains, and its intervals over draws of places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from conftest import adopt, fitted
from test_bench import IDEA

from lib.method import negatives
from lib.runs import Run
from study import bench, second, sharper, third, third_kept

SIZES = {"train": 96, "validation": 30, "validation_blocked": 30, "test": 30, "test_blocked": 40}


@pytest.fixture
def small(make_run: Callable[..., Run], narrow: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The program on one small run that stands for every draw, with few options."""
    run = make_run("training.batch_size=48", "evaluation.gallery=train", sizes=SIZES)
    photos = pd.read_parquet(run.manifest)
    photos["id"] = [f"bm_{number:06d}" for number in range(len(photos))]
    photos.assign(cell=np.arange(len(photos)) // 10).to_parquet(run.manifest, index=False)
    adopt(run)
    draws = {"blue_marble": (211, 212), "shaded_relief": (221, 222)}
    options = {"STEPS_OF": 96, "SIZES": (48, 96), "EPOCHS": 1, "LONGER": 2, "TEMPERATURES": (0.1,)}
    options |= {"SHARES": (1 / 3, 1.0), "STOPPED": (1, 8), "FINAL_SEEDS": (10,), "DRAWS": draws}
    options |= {"CHOSEN": tmp_path / "third.json", "KEPT": tmp_path, "open_world": lambda *_: run}
    for name, value in (options | {"PREDICTIONS": tmp_path / "third_predictions.parquet"}).items():
        monkeypatch.setattr(third, name, value)
    # lags of random features do not rise
    monkeypatch.setattr(second, "curve_of", lambda run, changes: fitted(nugget=0.001 * len(str(changes))))
    for name in ("KEPT", "PREDICTIONS", "DRAWS"):
        monkeypatch.setattr(third_kept, name, getattr(third, name))
    return run


def test_in_miniature_each_training_is_made_once_and_kept(
    small: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = []
    for part in ("tune", "tune", "fits", "final", "longer", "scaling", "scaling", "alike"):
        assert third.main([part]) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out.count("made    trial-"))
    assert said[0] > 20 and said[1] == said[6] == 0
    arms = json.loads(third.CHOSEN.read_text())
    assert len(arms) == 14 and {arms[f"{name} places"]["strategy"] for name in third.TARGETS} == {
        *third.TARGETS
    }
    told = third.kept()
    sizes = {f"{name} {kind} 48" for name in ("infonce", third.MARGIN) for kind in ("geoclip", "places")}
    whole = {f"{arm} longer" for pair in third_kept.CONTRASTS for arm in pair[:2]}
    tuned = {f"{arm}_tuned" for arm in third.ALIKE} | {
        "infonce geoclip_equal",
        "constant_offset geoclip_equal",
    }
    assert set(told["arm"]) - tuned == {*arms, *sizes, *whole, third.NEAREST}
    assert "constant_offset geoclip_equal" in set(told["arm"]) and set(told["draw"]) == {211, 212}
    assert (told.groupby(["arm", "draw", "seed"], observed=True).size() == 70).all()
    whole = pd.read_csv(third.KEPT / "third_curves_by_fit.csv")
    assert len(whole) == 8 and whole["nugget"].nunique() > 1
    third_kept.tables()
    primary = pd.read_csv(third.KEPT / "third_primary.csv")
    assert len(primary) == len(third_kept.CONTRASTS) == 16 and primary["p_holm"].between(0.0, 1.0).all()
    monkeypatch.setattr(negatives, "REGISTRY", dict(negatives.REGISTRY))
    monkeypatch.setattr(bench, "BENCH", tmp_path / "bench")
    (tmp_path / "idea.py").write_text(IDEA)
    assert bench.main([str(tmp_path / "idea.py")]) == 0
    said = capsys.readouterr().out
    assert "blue_marble: 2 draws x 1 seeds" in said and "shaded_relief: left out" in said
    found = pd.read_csv(tmp_path / "bench" / "my_margin.csv")
    assert set(found["baseline"]) >= {"infonce geoclip", third.NEAREST} and set(found["seeds"]) == {1}


def test_a_part_that_is_none_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert third.main(["finale"]) == 1
    assert "tune|shares|fits|final|relief|longer|scaling|alike|keep" in capsys.readouterr().err


@pytest.mark.parametrize("program", [second, third])
def test_tasks_that_know_nothing_of_one_another_are_refused_in_a_sentence(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert program.main(["keep"]) == 1
    assert "each of these 4 tasks would think that it is alone" in capsys.readouterr().err


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(third.ranks, "count", lambda: 2)
    assert third.main(["keep"]) == 1
    assert "one writer; start it without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of_draws", "least", "most"), [(0.0, 0.955, 0.99), (0.2, 0.925, 0.97), (1.0, 0.93, 0.97)]
)
def test_intervals_over_draws_hold_the_truth_nearly_as_often_as_they_say(
    of_draws: float, least: float, most: float
) -> None:
    random, held = np.random.default_rng(4), []
    for _ in range(1_200):
        draws = [
            random.normal(0.0, of_draws) + random.normal(size=(1, 40)) + random.normal(size=(3, 40))
            for _ in range(4)
        ]
        found = third_kept.nested(draws)
        held.append(found.low <= 0.0 <= found.high)
    assert least <= np.mean(held) <= most


def test_a_difference_is_paired_within_draws_and_over_cells() -> None:
    random, rows = np.random.default_rng(1), []
    for draw, seed, split in ((draw, seed, s) for draw in third_kept.DRAWS["blue_marble"] for seed in (10, 11)
                              for s in third.TEST):  # fmt: skip
        base = random.uniform(0.0, 400.0, 60)
        for arm, errors in ((third_kept.QUESTION[1], base), (third_kept.QUESTION[0], 0.8 * base)):
            made = {"world": "blue_marble", "draw": draw, "seed": seed, "split": split, "arm": arm}
            rows.append(
                pd.DataFrame(made | {"id": range(60), "cell": np.arange(60) // 6, "error_km": errors})
            )
    errors = pd.concat(rows, ignore_index=True)
    endpoints = (("test", "acc_200km"), ("test_blocked", "acc_750km"), ("test", "acc_200km - acc_25km"))
    asked = [(*third_kept.QUESTION, *one) for one in endpoints]
    near, far, apart = third_kept.contrasts("blue_marble", errors, asked).to_dict("records")
    assert third_kept.contrasts("blue_marble", errors[:0], asked).empty, "a part that has not been trained"
    test = errors[errors["split"] == "test"].groupby("arm")["error_km"].apply(lambda km: (km <= 200.0).mean())
    assert near["difference"] == pytest.approx(test[third_kept.QUESTION[0]] - test[third_kept.QUESTION[1]])
    assert near["ci_low"] > 0.0 and near["seeds"] == 2 and far["difference"] == 0.0
    nearest = (
        errors[errors["split"] == "test"].groupby("arm")["error_km"].apply(lambda km: (km <= 25.0).mean())
    )
    gained = test - nearest
    assert apart["difference"] == pytest.approx(
        gained[third_kept.QUESTION[0]] - gained[third_kept.QUESTION[1]]
    )


def test_the_line_through_the_smaller_sizes_predicts_the_largest() -> None:
    rows = []
    for draw, size in ((draw, size) for draw in (211, 212, 213) for size in third_kept.SIZES):
        gain = 0.5 - 0.04 * np.log(size) + 0.001 * draw
        for arm, share in ((third_kept.MARGIN, 0.3 + gain), ("infonce", 0.3)):
            for kind in ("geoclip", "places"):
                name = f"{arm} {kind}" + ("" if size == 6_000 else f" {size}")
                near = np.arange(10_000) < round(10_000 * share)
                rows.append(pd.DataFrame({"split": "test", "seed": 10, "draw": draw, "arm": name,
                                          "error_km": np.where(near, 50.0, 900.0)}))  # fmt: skip
    rows.append(rows[-1].assign(seed=0, arm=third_kept.NEAREST))  # untrained, of no seed
    table = third_kept.scaling(pd.concat(rows)).set_index(["contrast", "metric", "photos"])["difference"]
    table = table.sort_index()
    margin = table["margin, geoclip", "acc_200km"]
    assert margin[0] == pytest.approx(-0.04, abs=1e-4)
    assert margin[-24_000] == pytest.approx(margin[24_000], abs=1e-4)
    assert table["places, margin", "acc_100km"].abs().max() < 1e-9


def test_targets_are_shared_as_their_formula_says() -> None:
    from test_negatives import ALPHA, PHOTOS, batch, correlation, pairs

    candidates = batch()
    found = {name: getattr(sharper, name)(candidates).targets for name in third.TARGETS[:3]}
    for i in range(PHOTOS):
        apart = {j: h for a, j, _, _, h in pairs(candidates) if a == i and j != i}
        laws = {"uniform_targets": lambda h: 1.0, "correlation_targets": lambda h: max(0.0, correlation(h)),
                "distance_targets": lambda h: np.exp(-h * 6371.0088 / candidates.softness_km)}  # fmt: skip
        for name, law in laws.items():
            total = sum(map(law, apart.values()))
            for j, h in apart.items():
                assert found[name][i, j].item() == pytest.approx(ALPHA * law(h) / total, abs=2e-4)
            assert found[name][i].sum().item() == pytest.approx(1.0, abs=1e-5)


def test_every_kept_table_follows_from_the_kept_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = third_kept.KEPT
    monkeypatch.setattr(third_kept, "KEPT", tmp_path)
    third_kept.tables()
    made = sorted(path.name for path in tmp_path.glob("third_*.csv"))
    assert {"third_primary.csv", "third_papers_question.csv", "third_levels.csv"} <= {*made}
    for name in made:
        again, kept = pd.read_csv(tmp_path / name), pd.read_csv(there / name)
        pd.testing.assert_frame_equal(again, kept, rtol=1e-4, atol=1e-6)
    assert third_kept.PREDICTIONS.stat().st_size < 15e6
