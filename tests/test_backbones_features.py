"""Statements about frozen encoders and their cached features: the published networks' own numbers, once,
resumable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, world
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from lib.data import backbones, datasets, features, manifest
from lib.data.backbones import build
from lib.data.features import Features
from lib.data.photos import open_photo
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import Backbone


def read(run: Run) -> Features:
    return features.read(run, datasets.read(run))


CPU = torch.device("cpu")
ENCODE = features.encode


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
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


class TestClip:
    def test_features_are_transformers_own_projected_ones(self, clip_folder: Path) -> None:
        backbone = build(Backbone(name=str(clip_folder)), CPU)
        images = [photo(seed) for seed in range(3)]
        whole = CLIPModel.from_pretrained(clip_folder).eval()
        pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=images, return_tensors="pt")[
            "pixel_values"
        ]
        with torch.inference_mode():
            expected = whole.get_image_features(pixel_values=pixels)
            found = backbone.encode(torch.stack([backbone.preprocess(image) for image in images]))
        expected = getattr(expected, "pooler_output", expected)
        assert found.shape == (3, backbone.dimension) == (3, 24)
        assert torch.allclose(found, expected, atol=1e-6)
        assert (found[0] - found[1]).abs().max() > 1e-3

    def test_a_relative_folder_is_relative_to_the_project_wherever_it_is_asked_from(
        self, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backbones, "PROJECT", clip_folder.parent)
        monkeypatch.chdir(tmp_path)
        assert build(Backbone(name=clip_folder.name), CPU).dimension == 24

    def test_another_side_than_the_checkpoints_is_refused(self, clip_folder: Path) -> None:
        with pytest.raises(BundleError, match=r"takes 32 px; backbone\.image_px: 64"):
            build(Backbone(name=str(clip_folder), image_px=64), CPU)

    def test_a_checkpoint_without_its_projection_is_refused_not_filled_at_random(
        self, clip_folder: Path, tmp_path: Path
    ) -> None:
        torn = shutil.copytree(clip_folder, tmp_path / "torn")
        weights = load_file(torn / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, torn / "model.safetensors", {"format": "pt"})
        with pytest.raises(BundleError, match="visual_projection"):
            build(Backbone(name=str(torn)), CPU)

    def test_an_empty_folder_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(
            BundleError, match=r"neither a checkpoint folder nor a name: its config\.json cannot be read"
        ):
            build(Backbone(name=str(tmp_path)), CPU)


@pytest.fixture(scope="module")
def network() -> backbones.Backbone:
    return build(Backbone(name="efficientnet-lite0", image_px=64), CPU)


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("family", ["siglip", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_a_checkpoint_of_every_known_family_gives_the_features_of_its_own_class(
    family: str, tmp_path: Path
) -> None:
    """A tiny random model of the very class, saved as the hub has it and loaded by the name of its folder."""
    import transformers

    torch.manual_seed(0)
    classes = {
        "siglip": "Siglip",
        "vit": "ViT",
        "dinov2": "Dinov2",
        "dinov2_with_registers": "Dinov2WithRegisters",
        "dinov3_vit": "DINOv3ViT",
    }
    prefix, sizes = classes[family], {**TOWER, "image_size": 32, "patch_size": 8}
    if family == "siglip":
        text = {**TOWER, "vocab_size": 50, "max_position_embeddings": 8}
        whole = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=sizes))
    else:
        whole = getattr(transformers, f"{prefix}Model")(getattr(transformers, f"{prefix}Config")(**sizes))
    whole.eval().save_pretrained(tmp_path)
    kind = {"siglip": "SiglipImageProcessor", "dinov3_vit": "DINOv3ViTImageProcessor"}.get(
        family, "ViTImageProcessor"
    )
    if family.startswith("dinov2"):
        processor = transformers.BitImageProcessor(
            size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
        )
    else:
        processor = getattr(transformers, kind)(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    backbone = build(Backbone(name=str(tmp_path)), CPU)
    pixels = torch.stack([backbone.preprocess(photo(seed)) for seed in range(2)])
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.uint8
    own = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    batch = own(images=[photo(seed) for seed in range(2)], return_tensors="pt")["pixel_values"]
    one_level = 1.0 / 255.0 / 0.22
    normalised, off = backbone.normalise(pixels), one_level if family == "dinov3_vit" else 1e-5
    assert torch.allclose(normalised, batch, atol=off)
    with torch.inference_mode():
        found, batch = backbone.encode(pixels), normalised
        if family == "siglip":
            expected = whole.vision_model(pixel_values=batch).pooler_output
        else:
            expected = whole(pixel_values=batch).last_hidden_state[:, 0]
    assert found.shape == (2, backbone.dimension) == (2, 32)
    assert torch.allclose(found, expected, atol=1e-5)


def test_dino_takes_another_size_of_input(tmp_path: Path) -> None:
    import transformers

    transformers.Dinov2Model(transformers.Dinov2Config(**TOWER, image_size=32, patch_size=8)).save_pretrained(
        tmp_path
    )
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    backbone = build(Backbone(name=str(tmp_path), image_px=48), CPU)
    tensor = backbone.preprocess(photo(0))
    assert tensor.shape == (3, 48, 48)
    assert backbone.encode(tensor[None]).shape == (1, 32)


def test_a_checkpoint_of_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    import transformers

    transformers.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(BundleError, match="'resnet' checkpoint; known families: clip, siglip, vit, dinov2"):
        build(Backbone(name=str(tmp_path)), CPU)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of timm with random weights, as timm itself saves one for the hub."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model("test_vit", num_classes=7), folder, safe_serialization=True)
    return folder


class TestTimm:
    def test_features_are_timms_own_pooled_ones(self, timm_folder: Path) -> None:
        import timm
        from timm.data import create_transform, resolve_model_data_config

        backbone = build(Backbone(name=str(timm_folder)), CPU)
        whole = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
        pixels = torch.stack([backbone.preprocess(photo(seed)) for seed in range(2)])
        own = create_transform(**resolve_model_data_config(whole))
        batch = torch.stack([own(photo(seed)) for seed in range(2)])
        assert pixels.dtype == torch.uint8 and torch.allclose(backbone.normalise(pixels), batch, atol=1e-5)
        with torch.inference_mode():
            expected = whole.forward_head(whole.forward_features(batch), pre_logits=True)
            found = backbone.encode(pixels)
            assert torch.allclose(whole.get_classifier()(found), whole(batch), atol=1e-5)
        assert found.shape == (2, backbone.dimension)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_an_unknown_model_is_found_before_anything_is_computed_and_close_names_are_told(self) -> None:
        with pytest.raises(BundleError, match="no such model; close names: .*resnet50"):
            backbones.find(Backbone(name="timm/resnett50"))


class TestEfficientNet:
    def test_folding_changes_nothing_but_rounding(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        network = backbones._with_statistics(EfficientNet.from_name("efficientnet-lite0", image_size=64), 64)
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            before = network.extract_features(images)
            after = backbones._folded(network).extract_features(images)
        assert before.std() > 0.01 and not any(
            isinstance(one, torch.nn.BatchNorm2d) for one in network.modules()
        )
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)

    def test_its_features_are_what_its_own_classifier_sees(self, network: backbones.Backbone) -> None:
        batch = torch.stack([network.preprocess(photo(seed)) for seed in range(2)])
        with torch.inference_mode():
            found = network.encode(batch)
            classes = network.module(network.normalise(batch))
            assert torch.allclose(network.module._fc(found), classes, atol=1e-4)
        assert found.shape == (2, network.dimension) == (2, 1280)
        assert found.min() >= 0.0

    def test_the_input_is_scaled_as_it_was_trained(self, network: backbones.Backbone) -> None:
        for value in (0, 127, 255):
            tensor = network.normalise(network.preprocess(Image.new("RGB", (70, 90), (value,) * 3)))
            assert tensor.shape == (3, 64, 64)
            assert torch.allclose(tensor, torch.tensor((value - 127.0) / 128.0), atol=1e-6)

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(BundleError) as caught:
            build(Backbone(name="efficientnet-lite9"), CPU)
        assert all(name in str(caught.value) for name in backbones.REGISTRY)


@pytest.fixture
def bare(make_run: Runs, clip_folder: Path, tmp_path: Path) -> Run:
    """A run over ten photos before their features are made: shards of four, batches of three, the tiny
    CLIP."""
    run = make_run(
        f"dataset.root={tmp_path / 'data'}", f"backbone.name={clip_folder}", "backbone.image_px=null",
        "backbone.shard_size=4", "backbone.batch_size=3", sizes={"train": 8, "test": 2},
    )  # fmt: skip
    run.features.unlink()
    for number, path in enumerate(world({"train": 8, "test": 2})[0]["path"]):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / "data" / path, quality=95)
    return run


def stop_after(shards: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stop extraction, as a user would, before it writes one shard more; the list returned fills with the
    shards' sizes."""
    encode, encoded = ENCODE, []

    def counted(*arguments: object) -> Iterator[tuple]:
        for made in encode(*arguments):
            if len(encoded) == shards:
                raise KeyboardInterrupt
            encoded.append(len(made[0]))
            yield made

    monkeypatch.setattr(features, "encode", counted)
    return encoded


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
        assert sorted(path.name for path in bare.features.parent.iterdir()) == [
            "features.npy",
            "unreadable.csv",
        ]
        assert [report.split()[0] for report in bare.reports] == ["made", "reused"]

    def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bits(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = features.extract(bare).read_bytes()
        bare.features.unlink()
        encoded = stop_after(2, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            features.extract(bare)
        assert not bare.features.exists()
        shards = sorted(bare.features.parent.rglob("*.npy"))
        assert len(shards) == 2
        shards[0].unlink()  # a shard in the middle is missing as well

        encoded.clear()
        encoded = stop_after(99, monkeypatch)
        assert features.extract(bare).read_bytes() == whole
        assert encoded == [4, 2]

    def test_another_setting_does_not_take_over_the_old_shards(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop_after(1, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            features.extract(bare)
        encoded = stop_after(99, monkeypatch)
        backbone = bare.settings.backbone.model_copy(update={"storage": "float32"})
        other = Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)
        assert np.load(features.extract(other)).dtype == np.float32
        assert encoded == [4, 4, 2]

    def test_weights_that_were_changed_in_place_are_another_backbone(
        self, bare: Run, clip_folder: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(clip_folder, tmp_path / "copy")
        backbone = bare.settings.backbone.model_copy(update={"name": str(copy)})
        run = Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)
        before = features.extract(run).read_bytes()
        weights = load_file(copy / "model.safetensors")
        weights["visual_projection.weight"] *= 1.5
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        os.utime(copy / "model.safetensors", (1, 1))
        assert features.extract(run).read_bytes() != before

    def test_what_cannot_be_decoded_has_no_feature_is_listed_and_belongs_to_no_split(
        self, viewed: Run
    ) -> None:
        photos = viewed.settings.dataset.root / "photos"
        (photos / "p0005.jpg").write_bytes((photos / "p0005.jpg").read_bytes()[:200])
        (photos / "p0009.jpg").unlink()
        stored = np.load(features.extract(viewed))
        assert (
            np.flatnonzero(np.isnan(stored).all(1)).tolist() == [5, 9] and np.isnan(stored).any(1).sum() == 2
        )
        frame = datasets.read(viewed)
        assert frame["split"].tolist() == ["train"] * 5 + ["unreadable"] + ["train"] * 2 + [
            "test",
            "unreadable",
        ]
        assert (
            manifest.rows_of(frame, "train").tolist()
            == features.read(viewed, frame).view_rows.tolist()
            == [0, 1, 2, 3, 4, 6, 7]
        )
        listed = pd.read_csv(viewed.table("left_out"))
        assert listed["id"].tolist() == ["p0005", "p0009"]
        assert "truncated" in listed["reason"][0].lower() and "No such file" in listed["reason"][1]

    def test_where_no_photo_can_be_decoded_one_sentence_says_so(self, bare: Run) -> None:
        for path in (bare.settings.dataset.root / "photos").iterdir():
            path.write_bytes(b"")
        with pytest.raises(
            BundleError,
            match=r"none of 10 photos can be decoded \(.*p0000\.jpg: .*cannot identify.*check dataset\.root",
        ):
            features.extract(bare)
        assert not bare.features.exists() and not list(bare.features.parent.glob("shards-*"))

    def test_a_feature_that_float16_cannot_hold_is_named_with_the_remedy(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        huge = backbones.Backbone(
            "huge",
            2,
            lambda image: torch.zeros(3, 4, 4, dtype=torch.uint8),
            [0.0] * 3,
            [1.0] * 3,
            lambda batch: torch.full((len(batch), 2), 1e6),
            torch.nn.Identity(),
        )
        monkeypatch.setattr(features, "build", lambda *_: huge)
        with pytest.raises(
            BundleError,
            match=r"p0000\.jpg: its feature is not finite as float16; try backbone\.storage=float32",
        ):
            features.extract(bare)


@pytest.fixture
def viewed(bare: Run) -> Run:
    backbone = bare.settings.backbone.model_copy(update={"views": 3})
    return Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)


class TestViews:
    def test_only_training_photos_have_them_and_the_plain_view_is_what_it_was(
        self, bare: Run, viewed: Run
    ) -> None:
        plain = np.load(features.extract(bare))
        assert np.array_equal(np.load(features.extract(viewed)), plain)
        views = np.load(viewed.views)
        assert (views.shape, views.dtype) == ((8, 3, 24), np.float16)
        assert all(np.abs(views[:, number] - plain[:8]).max() > 0 for number in range(3))
        assert len(np.unique(views.reshape(24, 24), axis=0)) == 24

    def test_a_photo_is_decoded_once_for_all_of_its_views(
        self, viewed: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []
        monkeypatch.setattr(
            features, "open_photo", lambda root, path: opened.append(path) or open_photo(root, path)
        )
        features.extract(viewed)
        assert sorted(opened) == sorted(pd.read_parquet(viewed.manifest)["path"])

    def test_with_as_many_views_as_epochs_none_is_seen_twice_and_each_photo_begins_elsewhere(
        self, viewed: Run
    ) -> None:
        features.extract(viewed)
        frozen, rows = read(viewed), np.array([5, 0, 7])
        seen = torch.stack([frozen.seen_in(epoch, rows) for epoch in (1, 2, 3)], 1)
        for position, row in enumerate(rows):
            ours = {tuple(view) for view in seen[position].tolist()}
            assert ours == {tuple(view) for view in frozen.views[row].astype(np.float32).tolist()}
        assert (
            len(
                {
                    np.flatnonzero((frozen.views[row] == frozen.seen_in(1, rows)[at].numpy()).all(1))[0]
                    for at, row in enumerate(rows)
                }
            )
            > 1
        )

    def test_the_augmentation_is_the_published_one(self, clip_folder: Path) -> None:
        """Of many views about a fifth is grey, half is flipped, and none but the size is fixed."""
        backbone = build(Backbone(name=str(clip_folder)), CPU)
        half = Image.new("RGB", (64, 64), (200, 60, 20))
        half.paste((20, 60, 200), (0, 0, 32, 64))
        augment = features.augmentation(backbone)
        torch.manual_seed(0)
        views = [np.asarray(augment(half)).astype(int) for _ in range(400)]
        assert {view.shape for view in views} == {(32, 32, 3)}
        grey = np.mean([(view == view[..., :1]).all() for view in views])
        assert 0.14 < grey < 0.27
        redder_left = [view[:, 0, 0].mean() > view[:, -1, 0].mean() + 5 for view in views]
        redder_right = [view[:, -1, 0].mean() > view[:, 0, 0].mean() + 5 for view in views]
        assert 0.35 < sum(redder_left) / (sum(redder_left) + sum(redder_right)) < 0.65


class TestRead:
    def test_centred_features_have_the_training_mean_subtracted_and_unit_length(self, make_run: Runs) -> None:
        run = make_run("backbone.centred=true")
        frozen, (manifest, stored) = read(run), world()
        mean = stored[(manifest["split"] == "train").to_numpy()].mean(0)
        assert np.allclose(frozen.mean, mean, atol=1e-6)
        rows = np.array([3, 100, 7])
        expected = (stored[rows] - mean) / np.linalg.norm(stored[rows] - mean, axis=1, keepdims=True)
        assert np.allclose(frozen.unit(rows), expected, atol=1e-6)
        assert np.array_equal(frozen.rows(rows), stored[rows])
        assert frozen.dimension == stored.shape[1]

    def test_without_centring_nothing_is_subtracted(self, make_run: Runs) -> None:
        frozen = read(make_run("backbone.centred=false"))
        assert not frozen.mean.any()
        assert torch.equal(frozen.unit([0]), torch.nn.functional.normalize(frozen.rows([0]), dim=1))
