"""Which trained model predicts: the best of a run's, a release's, or the one that the package ``geoclip`` brings.

A predictor is a model with the backbone that makes its features and the gallery that it chooses from, ready for use.
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
from lib.train.gallery import GalleryError

PUBLISHED = "geoclip"
"""The word for the model that the package ``geoclip`` brings."""


class PredictorError(BundleError):
    """No predictor can be had as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, the backbone of its features, and the gallery that it chooses from.

    Attributes:
        title: a few words for a page's title.
        description: one line: model, strategy, seed, backbone, training data, gallery and its size.
        model: in evaluation mode.
        encoder: makes the features; ``settings`` say how.
        gallery_deg: [G, 2]; ``embedded`` [G, 512] their unit embeddings, on the model's device.
        windows: folder of the satellite windows that the model was trained on, or None where it saw other photos;
            ``window_km`` is their side.
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
        """What a reader must know where a model of satellite windows is given other photos, else nothing."""
        if self.windows is None or all((root / path).resolve().is_relative_to(self.windows) for path in paths):
            return ""
        return (
            f"This model was trained on satellite windows of {self.window_km:.0f} km, so the places that it gives to "
            "street-level photos are meaningless."
        )


def of_run(run: Run, strategy: str | None = None, seed: int | None = None) -> Predictor:
    """The predictor of ``run``: of its best strategy on validation and its smallest seed, where none is named.

    Raises:
        PredictorError: the run has no such strategy or seed, or the backbone does not fit the model.
        ArtefactError, BackboneError, GalleryError, BundleError: a file of the run, its backbone or its gallery is not there.
    """
    settings, reason = run.settings.training, ""
    if strategy is None:
        strategy, accuracy = training.best_strategy(run)
        reason = f" (best on validation: {100 * accuracy:.1f} % within {training.CHOICE_KM} km)"
    for word, value, known in (("strategy", strategy, settings.strategies), ("seed", seed, settings.seeds)):
        if value is not None and value not in known:
            raise PredictorError(f"run {run.name} has no {word} {value}; it has {', '.join(map(str, known))}")
    seed = min(settings.seeds) if seed is None else seed
    path = run.require(run.checkpoint(strategy, seed), "02_baseline_geoclip or 04_regularized_training")
    dataset = run.settings.dataset
    made = _assembled(
        f"run {run.name}, {strategy}, seed {seed}",
        f"run {run.name}, strategy {strategy}{reason}, seed {seed}; trained on {dataset.name}",
        checkpoints.load(path, run.device),
        run.settings.backbone,
        (run.settings.evaluation.gallery, gallery.coordinates(run)),
    )
    if not isinstance(dataset, BlueMarble):
        return made
    return replace(made, windows=datasets.root_of(run).resolve(), window_km=dataset.window_km)


def of_published(device: torch.device, gallery_name: str | None = None, backbone: str | None = None) -> Predictor:
    """The predictor that the package ``geoclip`` publishes, trained on street-level photos of the whole world (MP-16).

    Args:
        gallery_name: ``geoclip`` (default: its 100,000 places) or the path of a CSV.
        backbone: folder of CLIP ViT-L/14, where it is not to be had from the hub.

    Raises:
        PredictorError, BackboneError, GalleryError: see :func:`of_run`.
    """
    settings = BackboneSettings(name=backbone or backbones.CLIP_VIT_LARGE, precision="float32", storage="float32")
    backbones.check_published_head(settings)
    among = (gallery_name or PUBLISHED, _gallery_without_run(gallery_name or PUBLISHED))
    description = "GeoCLIP as its authors published it; trained on MP-16"
    return _assembled("GeoCLIP as published", description, checkpoints.published().to(device), settings, among)


def of_release(
    folder: Path, device: torch.device, gallery_name: str | None = None, backbone: str | None = None
) -> Predictor:
    """The predictor of a release folder, as ``python -m lib.exchange`` writes it; arguments as in :func:`of_published`.

    Raises:
        ExchangeError: it is not such a folder.
        PredictorError, BackboneError, GalleryError: see :func:`of_run`.
    """
    release = exchange.read_geolocation(folder)
    name, revision = (backbone, None) if backbone else (release.backbone, release.revision)
    settings = BackboneSettings(name=name, revision=revision, precision="float32", storage="float32")
    among = ("its own", release.gallery_deg)
    if gallery_name:
        among = (gallery_name, _gallery_without_run(gallery_name))
    title = f"release {folder.resolve().name}"
    description = f"{title}; what it was trained on it does not say"
    return _assembled(title, description, release.model.to(device), settings, among)


def _assembled(
    title: str, description: str, trained: GeoCLIP, settings: BackboneSettings, among: tuple[str, np.ndarray]
) -> Predictor:
    """A predictor; the backbone is loaded before the gallery is embedded, as it is what may fail."""
    device = trained.logit_scale.device
    encoder, wanted = backbones.build(settings, device), len(trained.feature_mean)
    if encoder.dimension != wanted:
        raise PredictorError(
            f"backbone {settings.name} gives {encoder.dimension} features and {title} takes {wanted}; name its own backbone"
        )
    name, gallery_deg = among
    description += f"; backbone {settings.name}; gallery {name}, {len(gallery_deg):,} places"
    embedded = gallery.embed(trained, gallery_deg, device)
    return Predictor(title, description, trained, encoder, settings, gallery_deg, embedded)


def _gallery_without_run(name: str) -> np.ndarray:
    if name == PUBLISHED:
        return photo_places()
    if name.lower().endswith(".csv"):
        return gallery.read_csv(Path(name))
    raise GalleryError(f"gallery {name!r} needs a run; without one take {PUBLISHED} or the path of a CSV")


def find_run(name: str | None = None) -> Path:
    """Folder of the run or release ``name``: a folder, or a name below results/; default: quick, or else the only finished run.

    Raises:
        PredictorError: there is none of that name, or none or several finished ones to choose from.
    """
    if name is not None:
        for folder in (Path(name), RESULTS / name):
            if folder.is_dir():
                return folder
    finished = sorted(path.parent for path in RESULTS.glob("*/manifest.json"))
    there = ", ".join(folder.name for folder in finished) or "none"
    if name is not None:
        raise PredictorError(f"--model {name}: no such folder; finished runs under {RESULTS}: {there}; or take {PUBLISHED}")
    quick = RESULTS / "quick"
    if quick in finished or len(finished) == 1:
        return quick if quick in finished else finished[0]
    raise PredictorError(f"--model is needed: finished runs under {RESULTS}: {there}; or take {PUBLISHED}")


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
        PredictorError: an argument does not fit the model; or see :func:`of_run`, :func:`of_published`, :func:`of_release`.
    """
    if gallery_name is not None and gallery_name.lower().endswith(".csv"):
        gallery_name = str(Path(gallery_name).resolve())
    folder = None if name == PUBLISHED else find_run(name)
    if folder is not None and not (folder / "config.json").is_file():
        return of_run(_changed(Run.finished(folder), gallery_name, backbone, device), strategy, seed)
    if strategy is not None or seed is not None:
        raise PredictorError(f"--strategy and --seed choose among a run's models; {name} is a single one")
    found = find_device(device)
    return of_published(found, gallery_name, backbone) if folder is None else of_release(folder, found, gallery_name, backbone)


def _changed(run: Run, gallery_name: str | None, backbone: str | None, device: str) -> Run:
    """``run`` with another gallery, backbone or device, where they are named."""
    old = run.settings
    evaluation = old.evaluation.model_copy(update={"gallery": gallery_name} if gallery_name else {})
    moved = old.backbone.model_copy(update={"name": backbone, "revision": None} if backbone else {})
    return Run(old.model_copy(update={"evaluation": evaluation, "backbone": moved, "device": device}), run.folder)
