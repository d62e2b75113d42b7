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

from lib.data import backbones, features, manifest
from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.predict.releases import Release, export_geolocation, export_location_encoder
from lib.runs import Run, cache, writing
from lib.runs.machine import print_anywhere
from lib.train import checkpoints, gallery, training


def card(run: Run, strategy: str, seed: int) -> str:
    """A model card in Markdown: what the model was trained on, how well it does, what it is not for."""
    settings, counts = run.settings, features.photos(run, ["split"])["split"].value_counts()
    table = evaluation.evaluate(run)["accuracy"]
    reached = [
        f"| {one.split} | {100 * one.acc_200km:.1f} | {100 * one.acc_2500km:.1f} | {one.median_km:,.0f} |"
        for one in table[(table["strategy"] == strategy) & (table["seed"] == seed)].itertuples()
    ]
    return "\n".join([
        f"# Location model of run {run.name}",
        "",
        f"* Trained on {counts['train']:,} photos of the data set `{settings.dataset.name}`, on frozen",
        f"  features of `{settings.backbone.name}`. The project's data/README.md names sources and licences.",
        f"* Strategy `{strategy}`, seed {seed}, {settings.training.epochs} epochs. "
        "Method: after arXiv 2509.21573 and GeoCLIP, arXiv 2309.16020.",
        "* Not for photos of another kind: its answers there mean nothing. Not for finding or following",
        "  people, and not where a wrong place does harm: it always answers, right or wrong.",
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
        with cache.as_finished():
            _export(Run.finished(options.run), options)
    except (BundleError, OSError) as error:
        print(f"lib.exchange: {error}", file=sys.stderr)
        return 1
    return 0


def _export(run: Run, options: argparse.Namespace) -> None:
    strategy = options.strategy or training.best_strategy(run)[0]
    print(f"strategy {strategy}, seed {options.seed}")
    training.train_job(training.Job.of(run, strategy, options.seed))
    trained, text = checkpoints.load(run.checkpoint(strategy, options.seed)), card(run, strategy, options.seed)
    _write_card(export_location_encoder(trained, options.folder / "location-encoder"), text)
    settings = run.settings.backbone
    revision = settings.revision or backbones.find(settings).revision
    places = gallery.coordinates(run, features.photos(run, manifest.PLACES))
    release = Release(trained, places, settings.name, revision)
    _write_card(export_geolocation(release, options.folder / "geolocation"), text)


def _write_card(folder: Path, text: str) -> None:
    with writing(folder / "README.md") as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"wrote {folder}")


if __name__ == "__main__":
    raise SystemExit(main())
