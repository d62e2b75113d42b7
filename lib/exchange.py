"""A trained model for the package ``geoclip``: ``python -m lib.exchange results/NAME FOLDER``.

Writes FOLDER/location-encoder for ``geoclip.LocationEncoder.from_pretrained``, and FOLDER/geolocation for
``geoclip.GeoCLIP.from_pretrained`` (of a model on CLIP ViT-L/14 features), a model card in each.
``python -m lib.predict --model FOLDER/geolocation`` reads the latter back, whoever wrote it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from safetensors.torch import save as to_bytes

from lib.data import backbones, features, manifest
from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.predict.predictors import GEOLOCATION, HEAD_WIDTH, Release
from lib.runs import Run, cache, write_json, writing
from lib.runs.machine import print_anywhere
from lib.train import checkpoints, gallery, training


def export_geolocation(release: Release, folder: Path) -> Path:
    """Write ``release`` for ``geoclip.GeoCLIP.from_pretrained(folder)``; return ``folder``.

    Mean and scale of the features are folded into the head's first layer: the package knows neither.
    BundleError: the features do not have 768 dimensions.
    """
    trained, width = release.model, release.model.image_head[0].in_features
    if width != HEAD_WIDTH:
        said = f"geoclip's image head takes {HEAD_WIDTH} features and this model {width}; only its"
        raise BundleError(f"{said} location encoder can be exported; a model on CLIP ViT-L/14 can be whole")
    weights = {
        name.replace("image_head.", "image_encoder.mlp."): value
        for name, value in trained.state_dict().items()
        if not name.startswith("feature_")
    }
    weight, bias = "image_encoder.mlp.0.weight", "image_encoder.mlp.0.bias"
    weights[weight] = weights[weight] / trained.feature_scale
    weights[bias] = weights[bias] - weights[weight] @ trained.feature_mean
    with writing(folder / "gallery.csv") as aside:
        pd.DataFrame(release.gallery_deg, columns=["LAT", "LON"]).to_csv(aside, index=False)
    checkpoint = {"repo_id": release.backbone, "revision": release.revision}
    return _write(folder, GEOLOCATION, trained, weights, gallery_file="gallery.csv", backbone=checkpoint)


def export_location_encoder(trained: GeoCLIP, folder: Path) -> Path:
    """Write a release for ``geoclip.LocationEncoder.from_pretrained(folder)``; return ``folder``."""
    return _write(folder, "geoclip-location-encoder", trained, trained.location_encoder.state_dict())


def _write(folder: Path, kind: str, trained: GeoCLIP, weights: dict, **config: object) -> Path:
    with writing(folder / "model.safetensors") as aside:
        aside.write_bytes(to_bytes({name: value.contiguous().cpu() for name, value in weights.items()}))
    sigma = list(trained.location_encoder.sigma)
    write_json(folder / "config.json", {"model_type": kind, "format_version": 1, "sigma": sigma} | config)
    return folder


def card(run: Run, strategy: str, seed: int) -> str:
    """A model card in Markdown: what the model was trained on, how well it does, what it is not for."""
    dataset, backbone = run.settings.dataset.name, run.settings.backbone.name
    trained_on = (features.photos(run, ["split"])["split"] == "train").sum()
    table = evaluation.evaluate(run)["accuracy"].query("strategy == @strategy and seed == @seed")
    shares = 100 * table["acc_200km"], 100 * table["acc_2500km"]
    rows = zip(table["split"], *shares, table["median_km"], strict=True)
    reached = "\n".join("| {} | {:.1f} | {:.1f} | {:,.0f} |".format(*row) for row in rows)
    return f"""# Location model of run {run.name}

* Trained on {trained_on:,} photos of the data set `{dataset}`, on frozen features of `{backbone}`.
  The project's data/README.md names sources and licences.
* Strategy `{strategy}`, seed {seed}, {run.settings.training.epochs} epochs. \
Method: after arXiv 2509.21573 and GeoCLIP, arXiv 2309.16020.
* Not for photos of another kind: its answers there mean nothing. Not for finding or following
  people, and not where a wrong place does harm: it always answers, right or wrong.

| split | % within 200 km | % within 2,500 km | median error, km |
| --- | --- | --- | --- |
{reached}
"""


def export(run: Run, folder: Path, strategy: str | None = None, seed: int = 0) -> None:
    """Write both releases of a run's model to ``folder``, by default of its best strategy on validation.
    BundleError: the model is not on 768 features; only its location encoder is written then."""
    strategy = strategy or training.best_strategy(run)[0]
    training.check_trained(run, strategy, seed)
    print(f"strategy {strategy}, seed {seed}")
    training.train_job(training.Job.of(run, strategy, seed))
    trained, text = checkpoints.load(run.checkpoint(strategy, seed)), card(run, strategy, seed)
    backbone, places = run.settings.backbone, gallery.coordinates(run, features.photos(run, manifest.PLACES))
    release = Release(trained, places, backbone.name, backbone.revision or backbones.find(backbone).revision)
    for write, model, name in (
        (export_location_encoder, trained, "location-encoder"),
        (export_geolocation, release, "geolocation"),
    ):
        with writing(write(model, folder / name) / "README.md") as aside:
            aside.write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 with a sentence where something cannot be exported."""
    print_anywhere()
    parser = argparse.ArgumentParser("python -m lib.exchange", description="A model for package geoclip.")
    parser.add_argument("run", type=Path, help="folder of a finished run, such as results/osv5m")
    parser.add_argument("folder", type=Path, help="where the releases are written")
    parser.add_argument("--strategy", help="default: the best on validation")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        with cache.as_finished():
            export(Run.finished(given.run), given.folder, given.strategy, given.seed)
    except (BundleError, OSError) as error:
        print(f"lib.exchange: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
