"""Statements about the baseline without training: the most alike training photo, after whitening."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lib.data.features import Features
from lib.evaluate import neighbour
from lib.method.geodesy import distance_km

CPU = torch.device("cpu")
SIZES = {"train": 300, "validation": 60, "test": 50}


def small_world(amplitude: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Photos along the equator. Two features are the direction of the place, two are signs; six hardly vary,
    and one not at all."""
    draw, count = np.random.default_rng(0), sum(SIZES.values())
    angle = draw.uniform(-np.pi, np.pi, count)
    direction = amplitude * np.column_stack((np.cos(angle), np.sin(angle)))
    noise = np.column_stack((draw.choice([-1.0, 1.0], (count, 2)), 1e-3 * draw.normal(size=(count, 6))))
    features = np.column_stack((direction, noise, np.ones(count))).astype(np.float32)
    manifest = pd.DataFrame({"latitude": 0.0, "longitude": np.rad2deg(angle)})
    return manifest.assign(split=np.repeat(list(SIZES), list(SIZES.values()))), features


def naive(manifest: pd.DataFrame, features: np.ndarray, split: str, k: int) -> np.ndarray:
    """Predicted places of a split, by scikit-learn."""
    train, asked = (features[(manifest["split"] == name).to_numpy()] for name in ("train", split))
    pca = PCA(k, whiten=True, svd_solver="full").fit(train.astype(np.float64))
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(pca.transform(train))
    row = search.kneighbors(pca.transform(asked), return_distance=False)[:, 0]
    return manifest.loc[manifest["split"] == "train", ["latitude", "longitude"]].to_numpy()[row]


@pytest.mark.parametrize(("amplitude", "chosen"), [(20.0, 2), (0.1, 4)])
def test_it_is_scikit_learns_with_as_many_components_as_are_best_on_validation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], amplitude: float, chosen: int
) -> None:
    """In blocks of 17 photos; the place stands in the first two components, or in the two after them."""
    monkeypatch.setattr(neighbour, "COMPONENTS", (2, 4, 8))
    monkeypatch.setattr(neighbour, "GALLERY_BLOCK", 17)
    manifest, features = small_world(amplitude)
    truth = manifest.loc[manifest["split"] == "validation", ["latitude", "longitude"]].to_numpy()
    near = {
        k: (distance_km(naive(manifest, features, "validation", k), truth) <= 200.0).mean()
        for k in (2, 4, 8, 10)  # ten components vary
    }
    assert max(near, key=near.get) == chosen and near[chosen] > 0.3
    rows = np.flatnonzero(manifest["split"] == "test")
    found = neighbour.predict(Features(features, torch.zeros(11)), manifest, rows, CPU)
    assert np.array_equal(found, naive(manifest, features, "test", chosen))
    assert f"{chosen} of 10 principal components" in capsys.readouterr().out


def test_fewer_photos_than_features_have_one_component_less_than_photos() -> None:
    features = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    frozen = Features(features, torch.zeros(64))
    mean, directions = neighbour.fit(frozen, np.arange(20), CPU)
    whitened = (frozen.rows(np.arange(20)) - mean) @ directions
    assert whitened.shape == (20, 19)
    assert torch.allclose(whitened.T @ whitened / 19.0, torch.eye(19), atol=1e-4)
