"""Which trained model predicts: the best one of a run, a release, or GeoCLIP as its package brings it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lib.data import backbones, datasets, features, manifest
from lib.data.backbones import Backbone
from lib.data.places import photo_places
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.predict.releases import read_geolocation
from lib.runs import RESULTS, Run, cache, machine
from lib.runs.files import one_line
from lib.settings import Backbone as BackboneSettings
from lib.settings import BlueMarble
from lib.train import checkpoints, gallery, training
from lib.train.metrics import CHOICE_KM

PUBLISHED = "geoclip"
"""The word for the model that the package ``geoclip`` brings."""
PATIENCE_S = 3.0
"""Seconds in which the hub has to answer."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, the backbone of its features, and the gallery that it chooses from.

    Attributes:
        description: one line: model, strategy, seed, training data, backbone, gallery and its size.
        model: in evaluation mode.
        encoder: makes the features, as ``settings`` say.
        gallery_deg: [G, 2]; ``embedded`` [G, 512] their unit embeddings, on the model's device.
        windows: folder of the satellite windows of its training, or None; ``window_km``: their side.
    """

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
        """Which model this is, without its data, backbone and gallery: for a page's title."""
        return self.description.partition(";")[0]

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
    training.train_job(training.Job.of(run, strategy, seed))
    path = run.checkpoint(strategy, seed)
    dataset, places = run.settings.dataset, features.photos(run, manifest.PLACES)
    among = run.settings.evaluation.gallery, gallery.coordinates(run, places)
    description = f"run {run.name}, strategy {strategy}{reason}, seed {seed}; trained on {dataset.name}"
    made = _assembled(description, checkpoints.load(path, run.device), run.settings.backbone, among)
    if not isinstance(dataset, BlueMarble):
        return made
    return replace(made, windows=datasets.root_of(run).resolve(), window_km=dataset.window_km)


def _assembled(
    description: str, trained: GeoCLIP, settings: BackboneSettings, among: tuple[str, np.ndarray]
) -> Predictor:
    """A predictor; the backbone is loaded first, because that is what fails most often."""
    device, (name, gallery_deg) = trained.logit_scale.device, among
    encoder, wanted = backbones.build(settings, device), len(trained.feature_mean)
    if encoder.dimension != wanted:
        given = f"backbone {settings.name} gives {encoder.dimension} features"
        raise BundleError(f"{given} and the model takes {wanted}; name its own backbone")
    description += f"; backbone {settings.name}; gallery {name}, {len(gallery_deg):,} places"
    embedded = gallery.embed(trained, gallery_deg, device)
    return Predictor(description, trained, encoder, settings, gallery_deg, embedded)


def _reach(settings: BackboneSettings) -> None:
    """Ask once whether the hub can be reached: its client would try again for half a minute.

    Raises:
        BundleError: it cannot, and the checkpoint is not in its cache.
    """
    if "/" not in settings.name or backbones.folder_of(settings) is not None:
        return
    import httpx
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(settings.name, timeout=PATIENCE_S)
    except HfHubHTTPError:
        pass  # it answers; what it lacks is said when the backbone is loaded
    except (httpx.HTTPError, OSError) as error:
        if not isinstance(try_to_load_from_cache(settings.name, "config.json"), str):
            raise BundleError(
                f"backbone {settings.name}: not downloaded yet, and the hub cannot be reached "
                f"({one_line(error)}); give its folder with --backbone, or download it first"
            ) from error
        constants.HF_HUB_OFFLINE = True


def find_run(name: str) -> Path:
    """Folder of the run or release ``name``, also below results/.

    Raises:
        BundleError: there is none of that name; the message lists the finished runs.
    """
    for folder in (Path(name), RESULTS / name):
        if folder.is_dir():
            return folder
    there = ", ".join(sorted(path.parent.name for path in RESULTS.glob("*/provenance.json"))) or "none"
    raise BundleError(f"--model {name}: no such folder; finished runs: {there}; or take {PUBLISHED}")


def load_predictor(
    name: str = "quick", strategy: str | None = None, seed: int | None = None, backbone: str | None = None
) -> Predictor:
    """The predictor that the command line names.

    Args:
        name: ``geoclip``, or the folder of a finished run or of a release; see :func:`find_run`.
        strategy, seed: of a run.
        backbone: where the model's own backbone lies, if not where its settings say.

    Raises:
        BundleError: an argument does not fit the model; or see :func:`of_run`.
    """
    folder = None if name == PUBLISHED else find_run(name)
    if folder is not None and not (folder / "config.json").is_file():
        run = Run.finished(folder)
        moved = {"name": backbone, "revision": None} if backbone else {}
        _reach(run.settings.backbone.model_copy(update=moved))
        changes = {"backbone": run.settings.backbone.model_copy(update=moved), "device": "auto"}
        with cache.as_finished():
            return of_run(Run(run.settings.model_copy(update=changes), run.folder), strategy, seed)
    if strategy is not None or seed is not None:
        raise BundleError(f"--strategy and --seed choose among a run's models; {name} is a single one")
    release = None if folder is None else read_geolocation(folder)
    name, revision = (release.backbone, release.revision) if release else (backbones.CLIP_VIT_LARGE, None)
    if backbone:
        name, revision = backbone, None
    plain = BackboneSettings(name=name, revision=revision, precision="float32", storage="float32")
    _reach(plain)
    device = machine.find_device("auto")
    if release:
        description = f"release {folder.resolve().name}; it does not say what it was trained on"
        return _assembled(description, release.model.to(device), plain, ("its own", release.gallery_deg))
    backbones.check_published_head(plain)
    description = "GeoCLIP as its authors published it; trained on MP-16"
    return _assembled(description, checkpoints.published().to(device), plain, (PUBLISHED, photo_places()))
