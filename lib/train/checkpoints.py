"""Models as files: written whole with what they were trained with, read back, and begun."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from lib.data.draws import generator
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP, geoclip_locations
from lib.runs.files import READING_ERRORS, one_line, writing
from lib.settings import Training


def save(model: GeoCLIP, path: Path, **metadata: object) -> None:
    """Write the weights of ``model`` (safetensors) with ``metadata``, whole or not at all."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    content = to_bytes(weights, {name: json.dumps(value, default=str) for name, value in metadata.items()})
    with writing(path) as aside:
        aside.write_bytes(_with_sorted_metadata(content))


def _with_sorted_metadata(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: safetensors writes them in a random one."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def initialise(seed: int, mean: torch.Tensor, scale: float, settings: Training) -> GeoCLIP:
    """A model as ``settings`` begin one, drawn from ``seed`` alone; torch's own generator is left as it was.
    BundleError: ``image_head: geoclip`` on features that are not CLIP ViT-L/14's raw ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "weights").initial_seed())
        model = GeoCLIP(len(mean), mean, scale, settings.location_encoder)
    if settings.image_head == "geoclip":
        load_published_head(model)
    if settings.temperature is not None:
        model.logit_scale.data.fill_(-math.log(settings.temperature))
        model.logit_scale.requires_grad_(False)
    return model


def published() -> GeoCLIP:
    """GeoCLIP as published, of the package ``geoclip``, in evaluation mode. Takes the 768 projected features
    of CLIP ViT-L/14, raw: no mean subtracted."""
    model = GeoCLIP(768, location_weights="geoclip")
    load_published_head(model)
    return model.eval()


def load_published_head(model: GeoCLIP) -> None:
    """Give ``model`` the published image head and temperature. BundleError: not of 768 raw features."""
    if model.image_head[0].in_features != 768 or model.feature_mean.any():
        said = "geoclip's published image head takes the 768 raw features of CLIP ViT-L/14"
        mend = "backbone.name=openai/clip-vit-large-patch14 and backbone.centred=false"
        raise BundleError(f"{said}; set {mend}")
    folder = Path(geoclip_locations().__file__).parent / "weights"
    files = (folder / f"{name}_weights.pth" for name in ("image_encoder_mlp", "logit_scale"))
    head, scale = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    model.image_head.load_state_dict(head)
    with torch.no_grad():
        model.logit_scale.copy_(scale)


def load(path: Path, device: torch.device | str = "cpu") -> GeoCLIP:
    """The model saved at ``path``, in evaluation mode. BundleError: not a checkpoint of this model."""
    try:
        weights = load_file(path, device=str(device))
        model = GeoCLIP(len(weights["feature_mean"]))
        model.load_state_dict(weights)
        if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
            raise ValueError(f"{broken[0]} is not finite")
    except (*READING_ERRORS, SafetensorError) as error:
        said = f"{path}: not a checkpoint of this model ({one_line(error)})"
        raise BundleError(f"{said}; delete it, and it is made again") from error
    return model.to(device).eval()
