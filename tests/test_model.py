"""Statements about the model: geoclip's location encoder, unit embeddings, checkpoints, the queue."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from geoclip.model.location_encoder import LocationEncoder
from safetensors.torch import save_file

from lib.data.sphere import uniform_on_sphere
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.settings import Training
from lib.train.checkpoints import initialise, load, save
from lib.train.training import Queue

EDGES = [[90.0, 0.0], [-90.0, 0.0], [0.0, 180.0], [0.0, -180.0]]
PLACES = torch.from_numpy(np.concatenate([uniform_on_sphere(60, np.random.default_rng(0)), EDGES])).float()


@pytest.fixture(scope="module")
def pretrained() -> GeoCLIP:
    return GeoCLIP(8, location_weights="geoclip").eval()


class TestLocationEncoder:
    @torch.inference_mode()
    def test_pretrained_and_from_scratch_it_is_the_packages(self, pretrained: GeoCLIP) -> None:
        model, package = GeoCLIP(8), LocationEncoder(from_pretrained=False)
        package.load_state_dict(model.location_encoder.state_dict())
        for ours, theirs in ((pretrained, LocationEncoder()), (model, package)):
            assert torch.allclose(ours.embed_places(PLACES), F.normalize(theirs(PLACES), dim=1), atol=1e-6)

    def test_coordinates_in_half_precision_are_refused(self, pretrained: GeoCLIP) -> None:
        for wrong in (PLACES.half(), PLACES.bfloat16()):
            with pytest.raises(BundleError, match="float16 are off by up to .* km: give float32"):
                pretrained.embed_places(wrong)

    @torch.inference_mode()
    def test_bfloat16_keeps_the_phases(self, pretrained: GeoCLIP) -> None:
        exact = pretrained.embed_places(PLACES)
        with torch.autocast("cpu", torch.bfloat16):
            rough = pretrained.embed_places(PLACES)
        assert rough.dtype == torch.float32 and F.cosine_similarity(exact, rough).min() > 0.999


class TestEmbeddings:
    def test_both_are_unit_vectors_of_512(self, pretrained: GeoCLIP) -> None:
        photos = pretrained.embed_photos(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
        for one in (photos, pretrained.embed_places(PLACES)):
            assert one.shape[1] == 512 and torch.allclose(one.norm(dim=1), torch.ones(len(one)), atol=1e-5)

    def test_the_head_is_linear_relu_linear_on_centred_scaled_features(self) -> None:
        mean = torch.arange(8.0)
        model = GeoCLIP(8, mean, scale=4.0)
        features = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        first, last = model.image_head[0], model.image_head[2]
        assert (first.weight.shape, last.weight.shape) == ((768, 8), (512, 768))
        hidden = ((features - mean) / 4.0 @ first.weight.T + first.bias).clamp(min=0.0)
        expected = F.normalize(hidden @ last.weight.T + last.bias, dim=1)
        assert torch.allclose(model.embed_photos(features), expected, atol=1e-5)

    def test_a_logit_is_the_cosine_over_a_temperature_of_0_07_at_first(self, pretrained: GeoCLIP) -> None:
        photos, places = torch.eye(4)[:2], F.normalize(torch.ones(3, 4), dim=1)
        assert pretrained.logit_scale.item() == pytest.approx(-math.log(0.07))
        assert torch.allclose(pretrained.logits(photos, places), torch.full((2, 3), 0.5 / 0.07), atol=1e-4)


def test_the_seed_alone_decides_on_weights_and_the_global_generator_is_left_alone() -> None:
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(found))
        before = torch.random.get_rng_state()
        found.append(initialise(seed, torch.zeros(4), 1.0, Training()).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    one, two, other = found
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("image_head.0.weight", "location_encoder.LocEnc2.capsule.0.b"):
        assert not torch.equal(one[name], other[name])


class TestCheckpoint:
    def test_it_comes_back_bit_by_bit_and_gives_the_same_bytes_twice(self, tmp_path: Path) -> None:
        model = GeoCLIP(4, torch.arange(4.0), scale=0.3)
        metadata = {"strategy": "residual", "seed": 3, "gallery": "Städte.csv", "training": {"epochs": 2}}
        for number in range(3):
            save(model, tmp_path / f"{number}.safetensors", **metadata)
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
        back = load(tmp_path / "0.safetensors")
        assert not back.training
        expected, found = model.state_dict(), back.state_dict()
        assert set(expected) == set(found) and all(torch.equal(expected[key], found[key]) for key in expected)

    def test_what_is_no_checkpoint_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "text.safetensors").write_text("no weights")
        save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
        save_file({"feature_mean": torch.zeros(2)}, tmp_path / "partial.safetensors")
        for name in ("text", "other", "partial", "missing"):
            with pytest.raises(BundleError, match=rf"{name}\.safetensors: not a checkpoint of this model"):
                load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("size", [0, 2, 5, 7, 16, 40])
def test_the_queue_holds_the_latest_of_what_was_pushed_in_order(size: int) -> None:
    queue, pushed = Queue.empty(size, 3), 0
    for count in (5, 5, 1, 7, 5, 5, 5, 16, 5, 2, 5, 40, 5):
        rows = torch.arange(pushed, pushed + count)
        queue.push(rows, rows[:, None].float() + torch.tensor([0.0, 0.5]), rows[:, None] * torch.ones(3))
        pushed += count
        expected = torch.arange(max(0, pushed - size), pushed)
        rows, places, unit = queue.parts()
        assert torch.equal(rows, expected) and torch.equal(places[:, 1], expected + 0.5)
        assert torch.equal(unit, expected[:, None].expand(-1, 3).float()) and len(queue) == len(expected)
