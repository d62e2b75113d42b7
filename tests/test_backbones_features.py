"""Statements about frozen encoders and their cached features: the published networks' own numbers, once, resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, world
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from lib import backbones, features
from lib.backbones import BackboneError, build
from lib.features import FeatureError, Features
from lib.runs import Run
from lib.settings import Backbone

CPU = torch.device("cpu")


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP checkpoint of two narrow layers with random weights, as transformers saves one."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class TestClip:
    def test_features_are_transformers_own_projected_ones(self, clip_folder: Path) -> None:
        backbone = build(Backbone(name=str(clip_folder)), CPU)
        images = [photo(seed) for seed in range(3)]
        whole = CLIPModel.from_pretrained(clip_folder).eval()
        pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            expected = whole.get_image_features(pixel_values=pixels)
            found = backbone.encode(torch.stack([backbone.preprocess(image) for image in images]))
        expected = getattr(expected, "pooler_output", expected)
        assert found.shape == (3, backbone.dimension) == (3, 24)
        assert torch.allclose(found, expected, atol=1e-6)
        assert (found[0] - found[1]).abs().max() > 1e-3

    def test_it_is_frozen_and_in_evaluation_mode(self, clip_folder: Path) -> None:
        module = build(Backbone(name=str(clip_folder)), CPU).module
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_another_side_than_the_checkpoints_is_refused(self, clip_folder: Path) -> None:
        with pytest.raises(BackboneError, match=r"takes 32 px; backbone\.image_px: 64"):
            build(Backbone(name=str(clip_folder), image_px=64), CPU)

    def test_a_checkpoint_without_its_projection_is_refused_not_filled_at_random(self, clip_folder: Path, tmp_path: Path) -> None:
        torn = shutil.copytree(clip_folder, tmp_path / "torn")
        weights = load_file(torn / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, torn / "model.safetensors", {"format": "pt"})
        with pytest.raises(BackboneError, match="visual_projection"):
            build(Backbone(name=str(torn)), CPU)

    def test_an_empty_folder_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match="neither a checkpoint folder nor to be had from the hub"):
            build(Backbone(name=str(tmp_path)), CPU)

    def test_without_a_network_the_hubs_checkpoint_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match="nobody/no-such-checkpoint"):
            build(Backbone(name="nobody/no-such-checkpoint"), CPU)


@pytest.fixture(scope="module")
def network() -> backbones.Backbone:
    return build(Backbone(name="efficientnet-lite0", image_px=64), CPU)


class TestEfficientNet:
    def test_its_features_are_what_its_own_classifier_sees(self, network: backbones.Backbone) -> None:
        batch = torch.stack([network.preprocess(photo(seed)) for seed in range(2)])
        with torch.inference_mode():
            found = network.encode(batch)
            classes = network.module(batch)
            assert torch.allclose(network.module._fc(found), classes, atol=1e-4)
        assert found.shape == (2, network.dimension) == (2, 1280)
        assert found.min() >= 0.0

    def test_the_weights_are_the_trained_ones(self, network: backbones.Backbone) -> None:
        again = build(Backbone(name="efficientnet-lite0", image_px=64), CPU)
        assert all(torch.equal(a, b) for a, b in zip(network.module.state_dict().values(), again.module.state_dict().values(), strict=True))
        assert network.module._fc.weight.std() > 0.03

    def test_the_input_is_scaled_as_it_was_trained(self, network: backbones.Backbone) -> None:
        for value in (0, 127, 255):
            tensor = network.preprocess(Image.new("RGB", (70, 90), (value, value, value)))
            assert tensor.shape == (3, 64, 64)
            assert torch.allclose(tensor, torch.tensor((value - 127.0) / 128.0), atol=1e-6)

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(BackboneError) as caught:
            build(Backbone(name="efficientnet-lite9"), CPU)
        assert all(name in str(caught.value) for name in backbones.REGISTRY)


@pytest.fixture
def bare(make_run: Runs, clip_folder: Path, tmp_path: Path) -> Run:
    """A run over ten photos before their features are made: shards of four, batches of three, the tiny CLIP."""
    run = make_run(
        f"dataset.root={tmp_path / 'data'}", f"backbone.name={clip_folder}", "backbone.image_px=null",
        "backbone.shard_size=4", "backbone.batch_size=3", sizes={"train": 8, "test": 2},
    )  # fmt: skip
    run.features.unlink()
    for number, path in enumerate(world({"train": 8, "test": 2})[0]["path"]):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / "data" / path, quality=95)
    return run


class TestExtract:
    def test_row_i_is_the_feature_of_photo_i(self, bare: Run, clip_folder: Path) -> None:
        stored = np.load(features.extract(bare))
        backbone = build(bare.settings.backbone, CPU)
        assert (stored.shape, stored.dtype) == ((10, 24), np.float16)
        for row, path in enumerate(pd.read_parquet(bare.manifest)["path"]):
            with Image.open(bare.settings.dataset.root / path) as image, torch.inference_mode():
                expected = backbone.encode(backbone.preprocess(image)[None])[0]
            assert np.allclose(stored[row], expected, atol=2e-3)

    def test_it_is_done_once_and_leaves_no_shards(self, bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        features.extract(bare)
        monkeypatch.setattr(features, "encode", None)  # whoever calls it now fails
        features.extract(bare)
        assert [path.name for path in bare.features.parent.iterdir()] == ["features.npy"]
        assert [report.split()[0] for report in bare.reports] == ["made", "reused"]

    def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bits(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = features.extract(bare).read_bytes()
        bare.features.unlink()
        encode, encoded = features.encode, []

        def stops_at_the_third_shard(paths: list[Path], *others: object) -> np.ndarray:
            if len(encoded) == 2:
                raise KeyboardInterrupt
            encoded.append(len(paths))
            return encode(paths, *others)

        monkeypatch.setattr(features, "encode", stops_at_the_third_shard)
        with pytest.raises(KeyboardInterrupt):
            features.extract(bare)
        assert not bare.features.exists()
        shards = sorted(bare.features.parent.rglob("*.npy"))
        assert len(shards) == 2
        shards[0].unlink()  # a shard in the middle is missing as well

        encoded.clear()
        monkeypatch.setattr(features, "encode", lambda paths, *others: encoded.append(len(paths)) or encode(paths, *others))
        assert features.extract(bare).read_bytes() == whole
        assert encoded == [4, 2]

    def test_another_setting_does_not_take_over_the_old_shards(self, bare: Run, make_run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        encode, calls = features.encode, []

        def counted(paths: list[Path], *others: object) -> np.ndarray:
            calls.append(len(paths))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return encode(paths, *others)

        monkeypatch.setattr(features, "encode", counted)
        with pytest.raises(KeyboardInterrupt):
            features.extract(bare)
        backbone = bare.settings.backbone.model_copy(update={"storage": "float32"})
        other = Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)
        assert np.load(features.extract(other)).dtype == np.float32
        assert calls[2:] == [4, 4, 2]

    def test_a_broken_photo_is_named(self, bare: Run) -> None:
        broken = bare.settings.dataset.root / "photos" / "p0005.jpg"
        broken.write_bytes(broken.read_bytes()[:200])
        with pytest.raises(FeatureError, match=r"p0005\.jpg: cannot be decoded"):
            features.extract(bare)
        assert not bare.features.exists()

    def test_a_feature_that_float16_cannot_hold_is_named_with_the_remedy(self, bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        huge = backbones.Backbone("huge", 2, lambda image: torch.zeros(3, 4, 4), lambda batch: torch.full((len(batch), 2), 1e6), torch.nn.Identity())
        monkeypatch.setattr(features, "build", lambda *_: huge)
        with pytest.raises(FeatureError, match=r"p0000\.jpg: its feature is not finite as float16; try backbone\.storage=float32"):
            features.extract(bare)


class TestRead:
    def test_centred_features_have_the_training_mean_subtracted_and_unit_length(self, make_run: Runs) -> None:
        run = make_run("backbone.centred=true")
        frozen, (manifest, stored) = features.read(run), world()
        mean = stored[(manifest["split"] == "train").to_numpy()].mean(0)
        assert np.allclose(frozen.mean, mean, atol=1e-6)
        rows = np.array([3, 100, 7])
        expected = (stored[rows] - mean) / np.linalg.norm(stored[rows] - mean, axis=1, keepdims=True)
        assert np.allclose(frozen.unit(rows), expected, atol=1e-6)
        assert np.array_equal(frozen.rows(rows), stored[rows])
        assert frozen.dimension == stored.shape[1]

    def test_without_centring_nothing_is_subtracted(self, make_run: Runs) -> None:
        frozen = features.read(make_run("backbone.centred=false"))
        assert not frozen.mean.any()
        assert torch.equal(frozen.unit([0]), torch.nn.functional.normalize(frozen.rows([0]), dim=1))

    def test_half_precision_is_read_as_float32(self) -> None:
        frozen = Features(np.ones((3, 2), np.float16), torch.zeros(2))
        assert frozen.rows(np.array([0])).dtype == torch.float32

    def test_features_of_other_photos_are_refused(self, make_run: Runs) -> None:
        run = make_run()
        np.save(run.features, np.zeros((5, 4), np.float32))
        with pytest.raises(FeatureError, match=r"shape \(5, 4\) does not fit the manifest's 160 rows"):
            features.read(run)
