"""Models as files: written whole with what they were trained with, read back, and begun; and trainings that
are not finished."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from lib.data.draws import generator
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP, geoclip_locations
from lib.runs import ranks
from lib.runs.files import READING_ERRORS, one_line, writing
from lib.runs.machine import tell
from lib.settings import Training

if TYPE_CHECKING:
    from lib.train.data import Queue

SAVE_EVERY_S = 100.0
"""Seconds between saves: short trainings save nothing."""


def save(model: GeoCLIP, path: Path, **metadata: object) -> None:
    """Write the weights of ``model`` (safetensors) with ``metadata``, whole or not at all."""
    _write(path, model.state_dict(), {name: json.dumps(value) for name, value in metadata.items()})


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    content = to_bytes({name: value.contiguous().cpu() for name, value in tensors.items()}, metadata)
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
    """A model as ``settings`` begin one, drawn from ``seed`` alone, and not from torch's own generator."""
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
    """Give ``model``, of 768 features, the published image head and temperature."""
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
    except READING_ERRORS as error:
        said = f"{path}: not a checkpoint of this model ({one_line(error)})"
        raise BundleError(f"{said}; delete it, and it is made again") from error
    return model.to(device).eval()


@dataclass
class State:
    """What the rest of a training depends on besides data and settings. ``history``: a row an epoch."""

    model: GeoCLIP
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    queue: Queue
    generators: tuple[torch.Generator, ...]
    history: list[dict[str, Any]] = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + SAVE_EVERY_S)

    def save(self, path: Path) -> None:
        """Write all of it (safetensors; what is no tensor as JSON in the metadata), whole or not at all;
        nothing within ``SAVE_EVERY_S`` of the beginning or the last time."""
        if time.monotonic() < self.due:
            return
        moments, drawn = self.optimizer.state_dict(), [one.get_state() for one in self.generators]
        kept = {"model": self.model.state_dict(), "queue": dict(enumerate(self.queue.parts()))}
        kept |= {f"optimizer.{number}": of_one for number, of_one in moments["state"].items()}
        kept |= {"generators": dict(enumerate(drawn))}
        tensors = {f"{part}/{name}": value.cpu() for part, of in kept.items() for name, value in of.items()}
        rest = json.dumps([moments["param_groups"], self.schedule.state_dict(), self.history])
        _write(path, tensors, {"rest": rest})
        self.due = time.monotonic() + SAVE_EVERY_S

    def load(self, path: Path) -> None:
        """Go on from what ``path`` holds. Where it is damaged, a line says so, and nothing changes."""
        try:
            with safe_open(path, "pt") as file:
                groups, schedule, history = json.loads(file.metadata()["rest"])
            # copies: another machine cannot read what it has mapped of a file that is replaced
            tensors = {name: value.clone() for name, value in load_file(path).items()}
        except FileNotFoundError:
            return
        except READING_ERRORS as error:
            if ranks.rank() == 0:
                tell(f"again   {path}: damaged ({one_line(error)}); this training starts over")
            return
        kept: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            part, _, name = name.partition("/")
            kept.setdefault(part, {})[name] = value
        moments = {int(part.split(".")[1]): of_one for part, of_one in kept.items() if "." in part}
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(schedule)
        self.history = history
        self.queue.push(*(value for _, value in sorted(kept["queue"].items())))
        for number, one in enumerate(self.generators):
            one.set_state(kept["generators"][str(number)])
