"""Which trained model predicts: the best one of a run, a release, or GeoCLIP as its package brings it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lib.data import backbones, datasets, features, manifest
from lib.data.backbones import Backbone
from lib.data.places import photo_places
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.runs import RESULTS, Run, cache, machine
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import Backbone as BackboneSettings
from lib.settings import BlueMarble
from lib.train import checkpoints, gallery, training
from lib.train.metrics import CHOICE_KM

PUBLISHED = "geoclip"  # the word for the model that the package brings
GEOLOCATION, HEAD_WIDTH = "geoclip-geolocation", 768
"""``model_type`` of the package's releases that predict places, and the input width of their image head."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, the backbone of its features, its gallery [G, 2] and that embedded [G, 512] on its
    device, a description in one line, and the folder of its training's satellite windows, or None."""

    description: str
    model: GeoCLIP
    encoder: Backbone
    settings: BackboneSettings
    gallery_deg: np.ndarray
    embedded: torch.Tensor
    windows: Path | None = None
    window_km: float = 0.0

    @property
    def title(self) -> str:
        """The description without data, backbone and gallery."""
        return self.description.partition(";")[0]

    def caution(self, root: Path, paths: Sequence[str]) -> str:
        """A warning where a model of satellite windows is given other photos, else an empty string."""
        if not self.windows or all((root / path).resolve().is_relative_to(self.windows) for path in paths):
            return ""
        trained_on = f"This model was trained on satellite windows of {self.window_km:.0f} km"
        return f"{trained_on}; its answers to street-level photos are meaningless."


class Release(NamedTuple):
    """A model on 768 raw features, its gallery [G, 2], and the CLIP checkpoint that makes the features."""

    model: GeoCLIP
    gallery_deg: np.ndarray
    backbone: str
    revision: str | None


def of_run(run: Run, strategy: str | None = None, seed: int | None = None) -> Predictor:
    """The predictor of ``run``; by default of its best strategy on validation and its smallest seed.
    BundleError: the run has no such strategy or seed, or the backbone does not fit the model."""
    settings, dataset, reason = run.settings.training, run.settings.dataset, ""
    if strategy is None:
        strategy, accuracy = training.best_strategy(run)
        reason = f" (best on validation: {100 * accuracy:.1f} % within {CHOICE_KM} km)"
    seed = min(settings.seeds) if seed is None else seed
    training.check_trained(run, strategy, seed)
    training.train_job(training.Job.of(run, strategy, seed))
    trained = checkpoints.load(run.checkpoint(strategy, seed), run.device)
    among = gallery.coordinates(run, features.photos(run, manifest.PLACES))
    description = f"run {run.name}, strategy {strategy}{reason}, seed {seed}; trained on {dataset.name}"
    made = _assembled(description, trained, run.settings.backbone, run.settings.evaluation.gallery, among)
    if isinstance(dataset, BlueMarble):
        return replace(made, windows=datasets.root_of(run).resolve(), window_km=dataset.window_km)
    return made


def _assembled(
    description: str, trained: GeoCLIP, settings: BackboneSettings, gallery_name: str, gallery_deg: np.ndarray
) -> Predictor:
    encoder = backbones.build(settings, trained.logit_scale.device)
    given, wanted = encoder.dimension, len(trained.feature_mean)
    if given != wanted:
        said = f"backbone {settings.name} gives {given} features and the model takes {wanted}"
        raise BundleError(f"{said}; name its own backbone")
    description += f"; backbone {settings.name}; gallery {gallery_name}, {len(gallery_deg):,} places"
    embedded = gallery.embed(trained, gallery_deg, trained.logit_scale.device)
    return Predictor(description, trained, encoder, settings, gallery_deg, embedded)


def read_geolocation(folder: Path) -> Release:
    """The release in ``folder``, as :mod:`lib.exchange` or the package's authors have written it.
    BundleError: a file is missing or of another format."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        table, checkpoint = str(config["gallery_file"]), config["backbone"]
        checkpoint = checkpoint["repo_id"], checkpoint.get("revision")
        if (config["model_type"], config["format_version"]) != (GEOLOCATION, 1) or Path(table).name != table:
            raise ValueError(f"config.json wants {GEOLOCATION}, format 1, and a gallery beside it")
        trained, weights = GeoCLIP(HEAD_WIDTH), load_file(folder / "model.safetensors")
        state = {name: value for name, value in trained.state_dict().items() if name.startswith("feature_")}
        state |= {name.replace("image_encoder.mlp.", "image_head."): value for name, value in weights.items()}
        trained.load_state_dict(state)
    except (*READING_ERRORS, SafetensorError) as error:
        why = f"not a release for geolocation ({one_line(error)}); export it again"
        raise BundleError(f"{folder}: {why}") from error
    return Release(trained.eval(), gallery.read_csv(folder / table), *checkpoint)


def load_predictor(
    name: str = "quick", strategy: str | None = None, seed: int | None = None, backbone: str | None = None
) -> Predictor:
    """The predictor that the command line names; a finished run is taken as it is.

    ``name`` is ``geoclip``, or the folder of a finished run or of a release, also below results/.
    ``strategy`` and ``seed`` choose in a run. ``backbone`` says where the model's lies, if it was moved.
    BundleError: an argument does not fit the model, or a file of the run is missing or damaged.
    """
    folders = [] if name == PUBLISHED else [path for path in (Path(name), RESULTS / name) if path.is_dir()]
    folder = next(iter(folders), None)
    if folder is None and name != PUBLISHED:
        there = ", ".join(sorted(path.parent.name for path in RESULTS.glob("*/provenance.json"))) or "none"
        raise BundleError(f"--model {name}: no such folder; finished runs: {there}; or take {PUBLISHED}")
    moved = {"name": backbone, "revision": None} if backbone else {}
    if folder is not None and not (folder / "config.json").is_file():
        run = Run.finished(folder)
        changes = {"backbone": run.settings.backbone.model_copy(update=moved), "device": "auto"}
        with cache.as_finished():
            return of_run(replace(run, settings=run.settings.model_copy(update=changes)), strategy, seed)
    if strategy is not None or seed is not None:
        raise BundleError(f"--strategy and --seed choose among a run's models; {name} is a single one")
    if folder:
        release, gallery_name = read_geolocation(folder), "its own"
        description = f"release {folder.resolve().name}; it does not say what it was trained on"
    else:
        release = Release(checkpoints.published(), photo_places(), backbones.CLIP_VIT_LARGE, None)
        description, gallery_name = "GeoCLIP as its authors published it; trained on MP-16", PUBLISHED
    checkpoint = {"name": release.backbone, "revision": release.revision} | moved
    settings = BackboneSettings(**checkpoint, precision="float32", storage="float32")
    if folder is None:
        backbones.check_published_head(settings)
    trained = release.model.to(machine.find_device("auto"))
    return _assembled(description, trained, settings, gallery_name, release.gallery_deg)
