"""Exchange with the package ``geoclip``: a trained model as a release folder that its ``from_pretrained`` loads.

``python -m lib.exchange results/NAME --strategy semivariogram --seed 0 FOLDER`` writes two folders: FOLDER/geolocation for
``geoclip.GeoCLIP.from_pretrained`` (features of 768 dimensions, as CLIP ViT-L/14 has them) and FOLDER/location-encoder for
``geoclip.LocationEncoder.from_pretrained``. ``read_geolocation`` reads the former back, whoever wrote it.
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
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from lib.data import backbones
from lib.method import model
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.runs import ArtefactError, Run, write_json, writing
from lib.runs.files import READING_ERRORS, one_line
from lib.train import checkpoints, gallery

HEAD_WIDTH = 768
"""Input and hidden width of the package's image head."""


GEOLOCATION = "geoclip-geolocation"
"""``model_type`` in config.json of a release that predicts places."""


class ExchangeError(BundleError):
    """A model does not fit the package's architecture, or a release cannot be read; the message says in what."""


def export_geolocation(
    trained: GeoCLIP, gallery_deg: np.ndarray, folder: Path, backbone: str, revision: str | None
) -> Path:
    """Write ``trained`` as a release that ``geoclip.GeoCLIP.from_pretrained(folder)`` loads; return ``folder``.

    Mean and scale of the features are folded into the head's first layer, so that the package, which knows neither, gives the
    same logits on raw features.

    Args:
        gallery_deg: coordinates that the package will predict among, [G, 2].
        backbone, revision: the CLIP checkpoint on the hub that made the features.

    Raises:
        ExchangeError: the features do not have 768 dimensions.
    """
    first = trained.image_head[0]
    if first.in_features != HEAD_WIDTH:
        raise ExchangeError(
            f"geoclip's image head takes {HEAD_WIDTH} features and this model {first.in_features}; only models on CLIP "
            "ViT-L/14 features can be exported whole, any model's location encoder can"
        )
    head = {name: value.detach().clone() for name, value in trained.image_head.state_dict().items()}
    head["0.weight"] = head["0.weight"] / trained.feature_scale
    head["0.bias"] = head["0.bias"] - head["0.weight"] @ trained.feature_mean
    weights = {f"image_encoder.mlp.{name}": value for name, value in head.items()}
    weights |= {f"location_encoder.{name}": value for name, value in trained.location_encoder.state_dict().items()}
    weights["logit_scale"] = trained.logit_scale.detach()
    with writing(folder / "gallery.csv") as aside:
        pd.DataFrame(gallery_deg, columns=["LAT", "LON"]).to_csv(aside, index=False)
    config = {"gallery_file": "gallery.csv", "backbone": {"repo_id": backbone, "revision": revision}}
    return _write_release(folder, GEOLOCATION, trained, weights, config)


def export_location_encoder(trained: GeoCLIP, folder: Path) -> Path:
    """Write the location encoder as a release that ``geoclip.LocationEncoder.from_pretrained(folder)`` loads."""
    return _write_release(folder, "geoclip-location-encoder", trained, dict(trained.location_encoder.state_dict()), {})


def _write_release(folder: Path, kind: str, trained: GeoCLIP, weights: dict[str, torch.Tensor], config: dict) -> Path:
    with writing(folder / "model.safetensors") as aside:
        aside.write_bytes(to_bytes({name: value.contiguous().cpu() for name, value in weights.items()}))
    sigma = list(trained.location_encoder.sigma)
    write_json(folder / "config.json", {"model_type": kind, "format_version": 1, "sigma": sigma} | config)
    return folder


@dataclass(frozen=True)
class Release:
    """What a release folder for geolocation holds.

    Attributes:
        model: on raw features of 768 dimensions, in evaluation mode.
        gallery_deg: coordinates that it predicts among, [G, 2].
        backbone, revision: the CLIP checkpoint on the hub that makes the features.
    """

    model: GeoCLIP
    gallery_deg: np.ndarray
    backbone: str
    revision: str | None


def read_geolocation(folder: Path) -> Release:
    """The release in ``folder``, as ``export_geolocation`` or the package's authors have written it.

    Raises:
        ExchangeError: a file is missing or not of that format, or the location encoder has other frequencies than ours.
        GalleryError: the gallery cannot be used.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, version, sigma = (config[name] for name in ("model_type", "format_version", "sigma"))
        backbone, table = config["backbone"]["repo_id"], str(config["gallery_file"])
        weights = load_file(folder / "model.safetensors")
        trained = GeoCLIP(HEAD_WIDTH)
        state = {name: value for name, value in trained.state_dict().items() if name.startswith("feature_")}
        state |= {name.replace("image_encoder.mlp.", "image_head."): value for name, value in weights.items()}
        trained.load_state_dict(state)
    except (*READING_ERRORS, SafetensorError) as error:
        raise ExchangeError(f"{folder}: not a release for geolocation ({one_line(error)}); export it again") from error
    if (kind, version, sigma) != (GEOLOCATION, 1, list(trained.location_encoder.sigma)) or Path(table).name != table:
        raise ExchangeError(
            f"{folder / 'config.json'}: not a {GEOLOCATION} of format 1 with sigma {list(trained.location_encoder.sigma)} "
            "and a gallery beside it"
        )
    return Release(trained.eval(), gallery.read_csv(folder / table), backbone, config["backbone"].get("revision"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 with a sentence where there is nothing to export."""
    parser = argparse.ArgumentParser(
        "python -m lib.exchange", description="Export a trained model for the package geoclip."
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, such as results/osv5m")
    parser.add_argument("folder", type=Path, help="where the releases are written")
    parser.add_argument("--strategy", default="semivariogram")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        run = Run.finished(options.run)
        trained = checkpoints.load(run.require(run.checkpoint(options.strategy, options.seed), "04_regularized_training"))
        print(f"wrote {export_location_encoder(trained, options.folder / 'location-encoder')}")
        entry, settings = backbones.find(run.settings.backbone), run.settings.backbone
        revision = settings.revision or entry.revision
        places = gallery.coordinates(run)
        print(f"wrote {export_geolocation(trained, places, options.folder / 'geolocation', settings.name, revision)}")
    except (ArtefactError, ExchangeError, model.BundleError) as error:
        print(f"lib.predict.exchange: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
