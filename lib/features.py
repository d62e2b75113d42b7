"""Photos to frozen features, once, into a memory-mapped file; and what is read back from it.

Extraction writes shards of ``backbone.shard_size`` photos, each whole or not at all; a run that is stopped goes on at the
first missing shard. Finished shards are joined into features.npy [N, D], row i of the manifest's row i.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lib import datasets
from lib.backbones import Backbone, build
from lib.geodesy import distance_km
from lib.runs import Run, checksum, code_digest, progress, writing

CODE = ["backbones", "features"]


class FeatureError(RuntimeError):
    """Features cannot be made or read; the message names the file and the mend."""


class Photos(Dataset):
    """Preprocessed photos of a manifest, in its order: float tensors [3, H, W]."""

    def __init__(self, paths: list[Path], backbone: Backbone) -> None:
        self.paths = paths
        self.preprocess = backbone.preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            with Image.open(self.paths[index]) as image:
                return self.preprocess(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise FeatureError(
                f"{self.paths[index]}: cannot be decoded ({error}); replace it or run notebook 01 again"
            ) from error


def extract(run: Run) -> Path:
    """Extract the features of the run's manifest, or reuse them; return the path of features.npy.

    Holds one shard in memory. Deterministic on one machine: batches never straddle shards, so a resumed run gives the
    same bits.
    """
    settings = run.settings.backbone
    used = json.loads(settings.model_dump_json(exclude={"workers", "centred", "precision"}))
    used["arithmetic"] = run.arithmetic(run.settings.backbone.precision)

    def make() -> None:
        manifest = datasets.read(run)
        key = hashlib.sha256(
            json.dumps([used, checksum(run.manifest), [code_digest(name) for name in CODE]]).encode()
        ).hexdigest()
        _extract(run, manifest, run.features.parent / f"shards-{key[:12]}")

    run.produce("features", make=make, inputs=[run.manifest], outputs=[run.features], settings=used, code=CODE)
    return run.features


def _extract(run: Run, manifest: pd.DataFrame, folder: Path) -> None:
    """Write the missing shards under ``folder``, join them, remove them; shards of other settings are removed too."""
    settings = run.settings.backbone
    for stale in run.features.parent.glob("shards-*"):
        if stale != folder:
            shutil.rmtree(stale)
    paths = [datasets.root_of(run) / path for path in manifest["path"]]
    starts = range(0, len(paths), settings.shard_size)
    shards = [folder / f"{start:09d}.npy" for start in starts]
    missing = [number for number, shard in enumerate(shards) if not shard.exists()]
    if missing:
        backbone = build(settings, run.device)
        with progress(missing, "extracting features", len(missing)) as bar:
            for number in bar:
                chosen = paths[starts[number] : starts[number] + settings.shard_size]
                with writing(shards[number]) as aside:
                    np.save(aside, encode(chosen, backbone, run))
    _join(shards, len(paths), run.features)
    shutil.rmtree(folder)


def encode(paths: list[Path], backbone: Backbone, run: Run) -> np.ndarray:
    """Features of the photos at ``paths``, [N, D] of the settings' storage type.

    Raises:
        FeatureError: a photo cannot be decoded, or a feature is not finite.
    """
    settings, device = run.settings.backbone, run.device
    loader = DataLoader(
        Photos(paths, backbone), settings.batch_size, num_workers=settings.workers, pin_memory=device.type == "cuda"
    )
    parts = []
    with torch.inference_mode(), run.autocast(settings.precision):
        for batch in loader:
            parts.append(backbone.encode(batch.to(device, non_blocking=True)).float().cpu())
    with np.errstate(over="ignore"):  # an overflow is found, and named, in the next line
        features = torch.cat(parts).numpy().astype(settings.storage)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise FeatureError(
            f"{paths[row]}: its feature is not finite as {settings.storage}; try backbone.storage=float32"
        )
    return features


def _join(shards: list[Path], count: int, path: Path) -> None:
    first = np.load(shards[0], mmap_mode="r")
    with writing(path) as aside:
        joined = np.lib.format.open_memmap(aside, "w+", first.dtype, (count, first.shape[1]))
        row = 0
        for shard in shards:
            part = np.load(shard, mmap_mode="r")
            joined[row : row + len(part)] = part
            row += len(part)
        joined.flush()


@dataclass(frozen=True)
class Features:
    """Memory-mapped features, some rows of which are read at a time.

    Attributes:
        stored: [N, D] float16 or float32, row i of the manifest's row i.
        mean: [D], what is subtracted: the training mean where ``backbone.centred``, else zeros.
    """

    stored: np.ndarray
    mean: torch.Tensor

    @property
    def dimension(self) -> int:
        """D."""
        return self.stored.shape[1]

    def rows(self, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Features v of the rows ``indices`` [n], float32 [n, D], as stored."""
        return torch.from_numpy(self.stored[np.asarray(indices)]).float()

    def unit(self, indices: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Unit features u = (v - mean) / ||v - mean|| of the rows ``indices`` [n], float32 [n, D]."""
        return F.normalize(self.rows(indices) - self.mean, dim=1)


def read(run: Run) -> Features:
    """The run's features, mapped, not loaded.

    Raises:
        ArtefactError: notebook 01 has not made them yet.
        FeatureError: the file has other rows than the manifest.
    """
    manifest = datasets.read(run)
    stored = np.load(run.require(run.features, "01_data_preparation"), mmap_mode="r")
    if stored.ndim != 2 or len(stored) != len(manifest):
        raise FeatureError(
            f"{run.features}: shape {stored.shape} does not fit the manifest's {len(manifest)} rows; run notebook 01"
        )
    return Features(stored, _training_mean(run, stored, manifest))


def _training_mean(run: Run, stored: np.ndarray, manifest: pd.DataFrame) -> torch.Tensor:
    """Mean of the training split's features, float32 [D], in blocks; zeros unless ``backbone.centred``."""
    if not run.settings.backbone.centred:
        return torch.zeros(stored.shape[1])
    rows = datasets.manifest.rows_of(manifest, "train")
    total = sum(stored[rows[start : start + 65_536]].sum(0, dtype=np.float64) for start in range(0, len(rows), 65_536))
    return torch.from_numpy((total / len(rows)).astype(np.float32))


def most_alike(frozen: Features, manifest: pd.DataFrame, count: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """For ``count`` random training photos the most alike among them: rows first and second, dissimilarity, distance_km."""
    rows = datasets.manifest.rows_of(manifest, "train")
    chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    unit = frozen.unit(chosen)
    similarity = (unit @ unit.T).fill_diagonal_(-1.0)
    best, twin = similarity.max(1)
    places = datasets.manifest.coordinates(manifest)
    second = chosen[twin.numpy()]
    distance = distance_km(places[chosen], places[second])
    return pd.DataFrame(
        {"first": chosen, "second": second, "dissimilarity": 1.0 - best.numpy(), "distance_km": distance}
    )
