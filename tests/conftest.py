"""What the tests share: a small world whose photos' features depend on their place, and runs over it without
imagery."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client: no test may ask a network

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from geoclip.model.rff import GaussianEncoding
from hypothesis import settings as hypothesis_settings
from torch import nn

from lib.data import blue_marble, datasets, features
from lib.data.sphere import uniform_on_sphere
from lib.method import model, negatives
from lib.method.empirical import SUMS
from lib.method.geodesy import unit_vectors
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run, cache
from lib.settings import PROJECT, load
from lib.train import curve

hypothesis_settings.register_profile(
    "project", deadline=None, max_examples=80, derandomize=True, database=None
)
hypothesis_settings.load_profile("project")

SIZES = {"train": 96, "validation": 24, "test": 24, "test_blocked": 16}
DIMENSION = 16
SMALL = [
    "device=cpu", "dataset.train=96", "dataset.validation=24", "dataset.test=24", "dataset.test_blocked=16",
    "training.epochs=1", "training.strategies=infonce,decayed,similarity", "training.seeds=0",
    "backbone.shard_size=32",
]  # fmt: skip
"""Settings of a run that takes seconds with the real encoder."""

Runs = Callable[..., Run]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--thorough``: also what takes over a minute."""
    parser.addoption("--thorough", action="store_true", help="also run tests of over a minute each")


def pytest_configure(config: pytest.Config) -> None:
    """The marker that such tests have."""
    config.addinivalue_line("markers", "thorough: takes over a minute; runs with --thorough only")


LONG = ("test_pipeline", "test_tracks", "test_gpu", "test_stages", "test_kills", "test_ranks")
"""Files that take minutes: they come first, so that in the end no process waits for the other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; skip what is thorough without the option, and say so."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items if not config.getoption("--thorough") else []:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="takes over a minute; ./run_tests.sh --thorough runs it"))


@pytest.fixture(autouse=True)
def strategies_as_before() -> Iterator[None]:
    """A strategy that a test registers is gone after it."""
    known = dict(negatives.REGISTRY)
    yield
    negatives.REGISTRY.clear()
    negatives.REGISTRY.update(known)


def world(
    sizes: dict[str, int] = SIZES, dimension: int = DIMENSION, seed: int = 0
) -> tuple[pd.DataFrame, np.ndarray]:
    """A manifest, and features [N, dimension] that vary smoothly over the sphere, with noise and a common
    mean."""
    generator = np.random.default_rng(seed)
    count = sum(sizes.values())
    coordinates = uniform_on_sphere(count, generator, 70.0)
    numbers = range(count)
    manifest = pd.DataFrame({"id": [f"p{number:04d}" for number in numbers]})
    manifest["path"] = [f"photos/p{number:04d}.jpg" for number in numbers]
    manifest[["latitude", "longitude"]] = coordinates
    manifest["split"] = np.repeat(list(sizes), list(sizes.values()))
    manifest["continent"] = generator.choice(["Africa", "Asia", "Europe"], count)
    waves = generator.normal(size=(3, dimension))
    phase = 3.0 * unit_vectors(coordinates) @ waves + generator.uniform(0, 6, dimension)
    features = np.cos(phase) + 0.2 * generator.normal(size=(count, dimension)) + 0.5
    return manifest, features.astype(np.float32)


def table(errors: np.ndarray, strategy: str, split: str = "test") -> pd.DataFrame:
    """Predictions with errors [S, N] in kilometres; photos are called p0000, p0001 and so on."""
    ids = [f"p{number:04d}" for number in range(errors.shape[1])]
    frames = [
        pd.DataFrame({"id": ids, "split": split, "strategy": strategy, "seed": seed, "error_km": row})
        for seed, row in enumerate(errors)
    ]
    return pd.concat(frames, ignore_index=True)


def lognormal(seed: int, shape: tuple[int, int], median_km: float = 300.0) -> np.ndarray:
    """Errors in kilometres with this median."""
    return median_km * np.exp(1.8 * np.random.default_rng(seed).normal(size=shape))


def unit_rows(features: np.ndarray) -> Callable[[np.ndarray], torch.Tensor]:
    """What ``estimate`` reads: features of the given rows at unit length."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return lambda rows: torch.from_numpy(unit[rows]).float()


def small_world(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    manifest, features = world({"train": count})
    return features.astype(np.float64), manifest[["latitude", "longitude"]].to_numpy(copy=True)


def fitted(**changes: object) -> FittedSemivariogram:
    """A fitted curve with the shape that real imagery has."""
    values = {
        "family": "Stable", "metric": "planar", "nugget": 0.1, "partial_sill": 0.85, "length_scale_rad": 0.3,
        "exponent": 0.8, "range_rad": 0.9, "range_km": 0.9 * 6371.0088, "range_rule": "slope",
        "weights": "none",
        "r2": 0.99, "backbone": "synthetic", "centred": True, "photos": 96, "pairs": 4_560,
    }  # fmt: skip
    return FittedSemivariogram(**(values | changes))


def write_later(path: Path, text: str) -> None:
    """Write ``text`` with a later time of change: two writes may fall into one tick of the clock."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    if path.stat().st_mtime_ns <= before:
        os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


def python(*arguments: object, processes: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
    """What became of this Python on ``arguments``, one thread each; torchrun starts several ``processes``."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)} | variables
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


def write_world(run: Run, sizes: dict[str, int] = SIZES) -> None:
    """Write manifest, features and curve of :func:`world` as if the run's stages had made them."""
    manifest, features_of_world = world(sizes)
    for path in (run.features, run.table("not_matched"), run.empirical):
        path.parent.mkdir(parents=True, exist_ok=True)
    manifest.to_parquet(run.manifest, index=False)
    np.save(run.features, features_of_world)
    windows = blue_marble.window_archive(run.settings.dataset, datasets.root_of(run))
    windows.parent.mkdir(parents=True, exist_ok=True)
    for path in (run.table("not_matched"), features.unreadable_list(run), windows):
        path.write_text("row,id,path,reason\n")
    run.table("semivariogram").write_text("lag_km,gamma,variance,pairs\n")
    np.savez(run.empirical, lag_width_rad=0.1, **dict.fromkeys(SUMS, np.ones(32)))
    fitted().save(run.semivariogram)
    adopt(run)


def adopt(run: Run) -> None:
    """Note what lies in the run's folder as what its stages up to the curve have made."""

    def note(run: Run, name: str, make: object, **given: Any) -> None:
        needs = cache.needs_of(run.folder, given["inputs"], given["settings"], given["code"])
        cache.write_receipt(run, name, needs, [path for path in given["outputs"] if path.exists()], 0.0)

    with pytest.MonkeyPatch.context() as patch:
        for module in (datasets, features, curve):
            patch.setattr(module, "cached", note)
        curve.fit_run(run)


@pytest.fixture
def make_run(tmp_path: Path) -> Runs:
    """A function from overrides (``"group.key=value"``) to a run in a new folder, its manifest, features and
    curve written."""
    made = []

    def make(*overrides: str, sizes: dict[str, int] = SIZES) -> Run:
        always = (
            "device=cpu", "training.precision=float32", "backbone.precision=float32",
            "training.batch_size=32", "training.queue_size=0", "training.seeds=0",
            "training.validate_every=10",
        )  # fmt: skip
        root = f"dataset.root={tmp_path / 'windows'}"
        run = Run(load("smoke", (root, *always, *overrides)), tmp_path / f"run{len(made)}")
        write_world(run, sizes)
        made.append(run)
        return run

    return make


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 768 projected dimensions that is otherwise tiny, as a checkpoint folder with its
    processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 8}
    vision = small | {"image_size": 32, "patch_size": 16, "projection_dim": 768}
    config = CLIPConfig(projection_dim=768, text_config=text, vision_config=vision)
    folder = tmp_path_factory.mktemp("tiny_clip")
    CLIPModel(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return folder


class NarrowLocationEncoder(nn.Module):
    """geoclip's location encoder in the same parts, a hundred times narrower: trains in milliseconds."""

    n = 3

    def __init__(self, from_pretrained: bool = False) -> None:
        super().__init__()
        for number, sigma in enumerate((2**0, 2**4, 2**8)):
            part = nn.Module()
            part.capsule = nn.Sequential(
                GaussianEncoding(sigma, input_size=2, encoded_size=16), nn.Linear(32, 32), nn.ReLU()
            )
            part.head = nn.Sequential(nn.Linear(32, model.EMBEDDING))
            self.add_module(f"LocEnc{number}", part)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainings with a narrow location encoder, in one thread: their tensors are too small for two."""
    monkeypatch.setattr(model.geoclip_locations(), "LocationEncoder", NarrowLocationEncoder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A real Chromium, headless; skips where there is none. Of one module: its event loop would be in the
    notebooks' way."""
    import browsing

    if browsing.CHROMIUM is None:
        pytest.skip(browsing.MISSING)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.SWITCHES)
        yield running
        running.close()
