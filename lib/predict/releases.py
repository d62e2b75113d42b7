"""Releases of the package ``geoclip``: trained models as folders that its ``from_pretrained`` loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.runs import write_json, writing
from lib.runs.files import READING_ERRORS, one_line
from lib.train import gallery

HEAD_WIDTH = 768
"""Input and hidden width of the package's image head."""
GEOLOCATION = "geoclip-geolocation"
"""``model_type`` in config.json of a release that predicts places."""


@dataclass(frozen=True)
class Release:
    """A model on 768 raw features, its gallery [G, 2], and the CLIP checkpoint that makes the features."""

    model: GeoCLIP
    gallery_deg: np.ndarray
    backbone: str
    revision: str | None


def export_geolocation(release: Release, folder: Path) -> Path:
    """Write ``release`` for ``geoclip.GeoCLIP.from_pretrained(folder)``; return ``folder``.

    Mean and scale of the features are folded into the head's first layer, since the package knows neither.

    Raises:
        BundleError: the features do not have 768 dimensions.
    """
    trained, width = release.model, release.model.image_head[0].in_features
    if width != HEAD_WIDTH:
        raise BundleError(
            f"geoclip's image head takes {HEAD_WIDTH} features and this model {width}; only "
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
        pd.DataFrame(release.gallery_deg, columns=["LAT", "LON"]).to_csv(aside, index=False)
    checkpoint = {"repo_id": release.backbone, "revision": release.revision}
    config = {"gallery_file": "gallery.csv", "backbone": checkpoint}
    return _write(folder, GEOLOCATION, trained, weights, config)


def export_location_encoder(trained: GeoCLIP, folder: Path) -> Path:
    """Write a release for ``geoclip.LocationEncoder.from_pretrained(folder)``; return ``folder``."""
    return _write(folder, "geoclip-location-encoder", trained, trained.location_encoder.state_dict(), {})


def _write(folder: Path, kind: str, trained: GeoCLIP, weights: dict, config: dict) -> Path:
    with writing(folder / "model.safetensors") as aside:
        aside.write_bytes(to_bytes({name: value.contiguous().cpu() for name, value in weights.items()}))
    sigma = list(trained.location_encoder.sigma)
    write_json(folder / "config.json", {"model_type": kind, "format_version": 1, "sigma": sigma} | config)
    return folder


def read_geolocation(folder: Path) -> Release:
    """The release in ``folder``, as ``export_geolocation`` or the package's authors have written it.

    Raises:
        BundleError: a file is missing or of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, version = config["model_type"], config["format_version"]
        backbone, table = config["backbone"], str(config["gallery_file"])
        weights = load_file(folder / "model.safetensors")
        trained = GeoCLIP(HEAD_WIDTH)
        state = {name: value for name, value in trained.state_dict().items() if name.startswith("feature_")}
        state |= {name.replace("image_encoder.mlp.", "image_head."): value for name, value in weights.items()}
        trained.load_state_dict(state)
        checkpoint = backbone["repo_id"], backbone.get("revision")
    except (*READING_ERRORS, SafetensorError) as error:
        reason = f"not a release for geolocation ({one_line(error)}); export it again"
        raise BundleError(f"{folder}: {reason}") from error
    if (kind, version) != (GEOLOCATION, 1) or Path(table).name != table:
        wanted = f"a {GEOLOCATION} of format 1 with a gallery beside it"
        raise BundleError(f"{folder / 'config.json'}: not {wanted}")
    return Release(trained.eval(), gallery.read_csv(folder / table), *checkpoint)
