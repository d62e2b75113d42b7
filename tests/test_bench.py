"""Statements about the bench for other people's weightings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import adopt

from lib.evaluate import evaluation
from lib.method import negatives
from lib.method.errors import BundleError
from lib.runs import Run
from study import bench

IDEA = """from lib.method.negatives import Pairs, Reweighting, strategy

TRAINING = {"beta": 3.0}


@strategy("my_margin", "a plain margin", "beta", needs_curve=False)
def my_margin(pairs: Pairs) -> Reweighting:
    return Reweighting(log_weight=pairs.beta + 0.0 * pairs.logits)
"""


@pytest.fixture
def idea(tmp_path: Path) -> Path:
    path = tmp_path / "my_idea.py"
    path.write_text(IDEA)
    return path


@pytest.fixture
def run(make_run: Callable[..., Run], narrow: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    sizes = {"train": 96, "validation": 30, "test": 30, "test_blocked": 40}
    options = ["training.strategies=infonce,constant_offset", "training.seeds=0,1", "training.batch_size=48"]
    options += ["training.epochs=1", "training.beta=3", "evaluation.gallery=train"]
    # an idea has the rate of infonce, not that of all
    options += [f"training.variants.{name}.learning_rate=0.002" for name in ("infonce", "constant_offset")]
    made = make_run(*options, "evaluation.splits=test,test_blocked", sizes=sizes)
    photos = pd.read_parquet(made.manifest)
    photos.assign(cell=np.arange(len(photos)) // 5).to_parquet(made.manifest, index=False)
    adopt(made)
    evaluation.evaluate(made)
    for name, value in (("KEPT", tmp_path / "kept"), ("BENCH", tmp_path / "bench")):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.Run, "open", lambda *_: made)
    return made


def test_an_idea_is_trained_once_and_paired_with_the_kept_rows(
    run: Run, idea: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--keep"]) == 0
    known = set(negatives.REGISTRY)
    for _ in range(2):
        for name in set(negatives.REGISTRY) - known:
            del negatives.REGISTRY[name]
        assert bench.main([str(idea), "--quick"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.count("made    bench-") == 2 and "my_margin less each of these" in said
    table = pd.read_csv(bench.BENCH / "my_margin.csv")
    assert set(table["baseline"]) == {"infonce", "constant_offset", "nearest_neighbour"}
    # a plain margin under another name, with the same seeds, is the same training
    same = table[table["baseline"] == "constant_offset"]
    assert (same["difference"] == 0.0).all() and (same["p_holm"] == 1.0).all()
    assert (bench.BENCH / "my_margin.png").stat().st_size > 10_000
    idea.write_text(IDEA.replace("3.0", "5.0"))
    del negatives.REGISTRY["my_margin"]
    assert bench.main([str(idea), "--quick"]) == 0
    assert "made    bench-" in capsys.readouterr().out


def test_other_places_and_features_are_refused_by_name(run: Run, idea: Path) -> None:
    bench.main(["--keep"])
    kept = json.loads((bench.KEPT / "bench.json").read_text())
    bench.check(run, kept)
    other = kept | {"places": "elsewhere", "features": (2.0 + np.array(kept["features"])).tolist()}
    with pytest.raises(BundleError, match="has other places, features than the kept predictions"):
        bench.check(run, other)
    for changed in ({"epochs": 2}, {"nyquist_share": 0.5}):
        training = run.settings.training.changed(changed)
        elsewhere = replace(run, settings=run.settings.model_copy(update={"training": training}))
        with pytest.raises(BundleError, match="has other protocol than the kept predictions"):
            bench.check(elsewhere, kept)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1 +", "cannot be run .SyntaxError"),
        ("x = 1", "registers no strategy; it must register one"),
        (IDEA + IDEA.replace("my_margin", "other"), "registers my_margin, other; it must register one"),
        (IDEA.replace('"beta": 3.0', '"betta": 3.0'), "TRAINING: betta: Extra inputs are not permitted"),
        (IDEA.replace("my_margin", "infonce"), "there is a strategy 'infonce' already"),
    ],
)
def test_a_file_that_is_no_idea_is_a_sentence(
    run: Run, idea: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["--keep"])
    idea.write_text(text)
    assert bench.main([str(idea), "--quick"]) == 1
    assert pd.Series([capsys.readouterr().err]).str.contains(said).all()
