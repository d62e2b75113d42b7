"""Exchange with the package ``geoclip``: trained models as release folders that ``from_pretrained`` loads.

``python -m lib.exchange results/NAME FOLDER`` writes FOLDER/location-encoder for
``geoclip.LocationEncoder.from_pretrained`` and, for models on CLIP ViT-L/14 features, FOLDER/geolocation for
``geoclip.GeoCLIP.from_pretrained``. ``read_geolocation`` reads the latter back, whoever wrote it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from lib.data import backbones, datasets
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.runs import Run, write_json, writing
from lib.runs.files import READING_ERRORS, one_line
from lib.runs.machine import print_anywhere
from lib.train import checkpoints, gallery, training

HEAD_WIDTH = 768
"""Input and hidden width of the package's image head."""
GEOLOCATION = "geoclip-geolocation"
"""``model_type`` in config.json of a release that predicts places."""


def export_geolocation(
    trained: GeoCLIP, gallery_deg: np.ndarray, folder: Path, backbone: str, revision: str | None
) -> Path:
    """Write ``trained`` as a release for ``geoclip.GeoCLIP.from_pretrained(folder)``; return ``folder``.

    Mean and scale of the features are folded into the head's first layer, since the package knows neither.

    Args:
        gallery_deg: coordinates that the package will predict among, [G, 2].
        backbone, revision: the CLIP checkpoint on the hub that made the features.

    Raises:
        BundleError: the features do not have 768 dimensions.
    """
    first = trained.image_head[0]
    if first.in_features != HEAD_WIDTH:
        raise BundleError(
            f"geoclip's image head takes {HEAD_WIDTH} features and this model {first.in_features}; only "
            "a model on CLIP ViT-L/14 features can be exported whole; the location encoder of any model can"
        )
    head = {name: value.detach().clone() for name, value in trained.image_head.state_dict().items()}
    head["0.weight"] = head["0.weight"] / trained.feature_scale
    head["0.bias"] = head["0.bias"] - head["0.weight"] @ trained.feature_mean
    weights = {f"image_encoder.mlp.{name}": value for name, value in head.items()}
    location = trained.location_encoder.state_dict()
    weights |= {f"location_encoder.{name}": value for name, value in location.items()}
    weights["logit_scale"] = trained.logit_scale.detach()
    with writing(folder / "gallery.csv") as aside:
        pd.DataFrame(gallery_deg, columns=["LAT", "LON"]).to_csv(aside, index=False)
    config = {"gallery_file": "gallery.csv", "backbone": {"repo_id": backbone, "revision": revision}}
    return _write_release(folder, GEOLOCATION, trained, weights, config)


def export_location_encoder(trained: GeoCLIP, folder: Path) -> Path:
    """Write a release for ``geoclip.LocationEncoder.from_pretrained(folder)``; return ``folder``."""
    weights = dict(trained.location_encoder.state_dict())
    return _write_release(folder, "geoclip-location-encoder", trained, weights, {})


def _write_release(folder: Path, kind: str, trained: GeoCLIP, weights: dict, config: dict) -> Path:
    with writing(folder / "model.safetensors") as aside:
        aside.write_bytes(to_bytes({name: value.contiguous().cpu() for name, value in weights.items()}))
    sigma = list(trained.location_encoder.sigma)
    write_json(folder / "config.json", {"model_type": kind, "format_version": 1, "sigma": sigma} | config)
    return folder


def _write_card(folder: Path, text: str) -> None:
    with writing(folder / "README.md") as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"wrote {folder}")


@dataclass(frozen=True)
class Release:
    """A model on 768 raw features, its gallery [G, 2], and the CLIP checkpoint that makes the features."""

    model: GeoCLIP
    gallery_deg: np.ndarray
    backbone: str
    revision: str | None


def read_geolocation(folder: Path) -> Release:
    """The release in ``folder``, as ``export_geolocation`` or the package's authors have written it.

    Raises:
        BundleError: a file is missing or of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, version = config["model_type"], config["format_version"]
        backbone, table = config["backbone"]["repo_id"], str(config["gallery_file"])
        weights = load_file(folder / "model.safetensors")
        trained = GeoCLIP(HEAD_WIDTH)
        state = {name: value for name, value in trained.state_dict().items() if name.startswith("feature_")}
        state |= {name.replace("image_encoder.mlp.", "image_head."): value for name, value in weights.items()}
        trained.load_state_dict(state)
    except (*READING_ERRORS, SafetensorError) as error:
        reason = f"not a release for geolocation ({one_line(error)}); export it again"
        raise BundleError(f"{folder}: {reason}") from error
    if (kind, version) != (GEOLOCATION, 1) or Path(table).name != table:
        wanted = f"a {GEOLOCATION} of format 1 with a gallery beside it"
        raise BundleError(f"{folder / 'config.json'}: not {wanted}")
    revision = config["backbone"].get("revision")
    return Release(trained.eval(), gallery.read_csv(folder / table), backbone, revision)


def card(run: Run, strategy: str, seed: int) -> str:
    """A model card in Markdown: what the model was trained on, how well it does, what it is not for."""
    settings, counts = run.settings, datasets.read(run, ["split"])["split"].value_counts()
    table = pd.read_csv(run.require(run.table("accuracy"), "05_error_at_granularity"))
    of_model = table[(table["strategy"] == strategy) & (table["seed"] == seed)]
    reached = [
        f"| {one.split} | {100 * one.acc_200km:.1f} | {100 * one.acc_2500km:.1f} | {one.median_km:,.0f} |"
        for one in of_model.itertuples()
    ]
    return "\n".join([
        f"# Location model of run {run.name}",
        "",
        f"* Trained on {counts['train']:,} photos of the data set `{settings.dataset.name}`, on frozen",
        f"  features of `{settings.backbone.name}`. The project's data/README.md names sources and licences.",
        f"* Strategy `{strategy}`, seed {seed}, {settings.training.epochs} epochs. "
        "Method: after arXiv 2509.21573 and GeoCLIP, arXiv 2309.16020.",
        "* Not for photos of another kind than those: its answers there mean nothing. Not for finding or",
        "  following people, and not where a wrong place does harm: it always answers, right or wrong.",
        "",
        "| split | % within 200 km | % within 2,500 km | median error, km |",
        "| --- | --- | --- | --- |",
        *reached,
        "",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 with a sentence where something cannot be exported."""
    print_anywhere()
    parser = argparse.ArgumentParser("python -m lib.exchange", description="A model for package geoclip.")
    parser.add_argument("run", type=Path, help="folder of a finished run, such as results/osv5m")
    parser.add_argument("folder", type=Path, help="where the releases are written")
    parser.add_argument("--strategy", help="default: the best on validation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        run = Run.finished(options.run)
        strategy = options.strategy or training.best_strategy(run)[0]
        print(f"strategy {strategy}, seed {options.seed}")
        path = run.require(run.checkpoint(strategy, options.seed), "04_regularized_training")
        trained = checkpoints.load(path)
        text = card(run, strategy, options.seed)
        _write_card(export_location_encoder(trained, options.folder / "location-encoder"), text)
        settings = run.settings.backbone
        revision = settings.revision or backbones.find(settings).revision
        places = gallery.coordinates(run, datasets.read(run, datasets.manifest.PLACES))
        folder = options.folder / "geolocation"
        _write_card(export_geolocation(trained, places, folder, settings.name, revision), text)
    except (BundleError, OSError) as error:
        print(f"lib.exchange: {error}", file=sys.stderr)
        return 1
    return 0
