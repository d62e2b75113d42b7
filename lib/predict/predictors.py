"""Which trained model predicts: the best one of a run, a release, or GeoCLIP as its package brings it.

A predictor is a model, the backbone that makes its features, and the gallery that it chooses from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib.data import backbones, datasets
from lib.data.backbones import Backbone
from lib.data.blue_marble import photo_places
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.predict import exchange
from lib.runs import RESULTS, Run, find_device
from lib.settings import Backbone as BackboneSettings
from lib.settings import BlueMarble
from lib.train import checkpoints, gallery, training
from lib.train.metrics import CHOICE_KM

PUBLISHED = "geoclip"
"""The word for the model that the package ``geoclip`` brings."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, the backbone of its features, and the gallery that it chooses from.

    Attributes:
        title: a few words for a page's title.
        description: one line: model, strategy, seed, training data, backbone, gallery and its size.
        model: in evaluation mode.
        encoder: makes the features, as ``settings`` say.
        gallery_deg: [G, 2]; ``embedded`` [G, 512] their unit embeddings, on the model's device.
        windows: folder of the satellite windows of its training, or None; ``window_km``: their side.
    """

    title: str
    description: str
    model: GeoCLIP
    encoder: Backbone
    settings: BackboneSettings
    gallery_deg: np.ndarray
    embedded: torch.Tensor
    windows: Path | None = None
    window_km: float = 0.0

    def caution(self, root: Path, paths: Sequence[str]) -> str:
        """A warning where a model of satellite windows is given other photos, else an empty string."""
        folder = self.windows
        if folder is None or all((root / path).resolve().is_relative_to(folder) for path in paths):
            return ""
        return (
            f"This model was trained on satellite windows of {self.window_km:.0f} km, so the places that it "
            "gives to street-level photos are meaningless."
        )


def of_run(run: Run, strategy: str | None = None, seed: int | None = None) -> Predictor:
    """The predictor of ``run``; by default of its best strategy on validation and its smallest seed.

    Raises:
        BundleError: the run has no such strategy or seed, a file is missing, or the backbone does not fit.
    """
    settings, reason = run.settings.training, ""
    if strategy is None:
        strategy, accuracy = training.best_strategy(run)
        reason = f" (best on validation: {100 * accuracy:.1f} % within {CHOICE_KM} km)"
    for word, value, known in (("strategy", strategy, settings.strategies), ("seed", seed, settings.seeds)):
        if value is not None and value not in known:
            raise BundleError(f"run {run.name} has no {word} {value}; it has {', '.join(map(str, known))}")
    seed = min(settings.seeds) if seed is None else seed
    path = run.require(run.checkpoint(strategy, seed), "02_baseline_geoclip or 04_regularized_training")
    dataset, places = run.settings.dataset, datasets.read(run, datasets.manifest.PLACES)
    made = _assembled(
        f"run {run.name}, {strategy}, seed {seed}",
        f"run {run.name}, strategy {strategy}{reason}, seed {seed}; trained on {dataset.name}",
        checkpoints.load(path, run.device),
        run.settings.backbone,
        (run.settings.evaluation.gallery, gallery.coordinates(run, places)),
    )
    if not isinstance(dataset, BlueMarble):
        return made
    return replace(made, windows=datasets.root_of(run).resolve(), window_km=dataset.window_km)


def _of_published(device: torch.device, gallery_name: str | None, backbone: str | None) -> Predictor:
    """GeoCLIP as its package publishes it; the backbone is CLIP ViT-L/14 of the hub, or a folder."""
    settings = _single(backbone or backbones.CLIP_VIT_LARGE)
    backbones.check_published_head(settings)
    among = _named_gallery(gallery_name or PUBLISHED)
    trained = checkpoints.published().to(device)
    description = "GeoCLIP as its authors published it; trained on MP-16"
    return _assembled("GeoCLIP as published", description, trained, settings, among)


def _of_release(
    folder: Path, device: torch.device, gallery_name: str | None, backbone: str | None
) -> Predictor:
    """The predictor of a release that ``python -m lib.exchange`` wrote."""
    release = exchange.read_geolocation(folder)
    settings = _single(backbone) if backbone else _single(release.backbone, release.revision)
    among = _named_gallery(gallery_name) if gallery_name else ("its own", release.gallery_deg)
    title = f"release {folder.resolve().name}"
    description = f"{title}; it does not say what it was trained on"
    return _assembled(title, description, release.model.to(device), settings, among)


def _single(backbone: str, revision: str | None = None) -> BackboneSettings:
    return BackboneSettings(name=backbone, revision=revision, precision="float32", storage="float32")


def _assembled(
    title: str, description: str, trained: GeoCLIP, settings: BackboneSettings, among: tuple[str, np.ndarray]
) -> Predictor:
    """A predictor; the backbone is loaded first, because that is what fails most often."""
    device = trained.logit_scale.device
    encoder, wanted = backbones.build(settings, device), len(trained.feature_mean)
    if encoder.dimension != wanted:
        raise BundleError(
            f"backbone {settings.name} gives {encoder.dimension} features and {title} takes {wanted}; "
            "name its own backbone"
        )
    name, gallery_deg = among
    description += f"; backbone {settings.name}; gallery {name}, {len(gallery_deg):,} places"
    embedded = gallery.embed(trained, gallery_deg, device)
    return Predictor(title, description, trained, encoder, settings, gallery_deg, embedded)


def _named_gallery(name: str) -> tuple[str, np.ndarray]:
    """``name`` and coordinates of a gallery that needs no run."""
    if name == PUBLISHED:
        return name, photo_places()
    if name.lower().endswith(".csv"):
        return name, gallery.read_csv(Path(name))
    raise BundleError(f"gallery {name!r} needs a run; without one take {PUBLISHED} or the path of a CSV")


def find_run(name: str | None = None) -> Path:
    """Folder of the run or release ``name``, also below results/; by default quick, or the only finished run.

    Raises:
        BundleError: there is none of that name; or none is named, and there is none or more than one.
    """
    for folder in (Path(name), RESULTS / name) if name else ():
        if folder.is_dir():
            return folder
    records = [*RESULTS.glob("*/provenance.json"), *RESULTS.glob("*/manifest.json")]
    finished = {path.parent.name for path in records}
    if name is None and ("quick" in finished or len(finished) == 1):
        return RESULTS / ("quick" if "quick" in finished else min(finished))
    problem = f"--model {name}: no such folder" if name else "--model is needed"
    there = ", ".join(sorted(finished)) or "none"
    raise BundleError(f"{problem}; finished runs under {RESULTS}: {there}; or take {PUBLISHED}")


def load_predictor(
    name: str | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    gallery_name: str | None = None,
    backbone: str | None = None,
    device: str = "auto",
) -> Predictor:
    """The predictor that the command line names.

    Args:
        name: ``geoclip``, or the folder of a finished run or of a release; see :func:`find_run`.
        strategy, seed: of a run.
        gallery_name: another gallery than the model's own; a CSV's path is relative to the working directory.
        backbone: where the model's own backbone lies, if not where its settings say.

    Raises:
        BundleError: an argument does not fit the model; or see :func:`of_run`.
    """
    if gallery_name is not None and gallery_name.lower().endswith(".csv"):
        gallery_name = str(Path(gallery_name).resolve())
    folder = None if name == PUBLISHED else find_run(name)
    if folder is not None and not (folder / "config.json").is_file():
        run = Run.finished(folder)
        old, moved = run.settings, {"name": backbone, "revision": None} if backbone else {}
        changes = {
            "evaluation": old.evaluation.model_copy(update={"gallery": gallery_name} if gallery_name else {}),
            "backbone": old.backbone.model_copy(update=moved),
            "device": device,
        }
        return of_run(Run(old.model_copy(update=changes), run.folder), strategy, seed)
    if strategy is not None or seed is not None:
        raise BundleError(f"--strategy and --seed choose among a run's models; {name} is a single one")
    found = find_device(device)
    if folder is None:
        return _of_published(found, gallery_name, backbone)
    return _of_release(folder, found, gallery_name, backbone)
