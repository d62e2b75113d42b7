"""Where was this photo taken? Candidates of a trained model: ``python -m lib.predict PHOTO…``.

A model gives each point of its gallery a probability, the softmax over the gallery of exp(s) x cosine. They
rank the places of one photo. They are NOT calibrated: training asked for the right place among a batch and a
queue, not among this gallery, so 60 % is not right in 6 of 10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib.data import features, places
from lib.data.folder import files_below
from lib.data.photos import ENDINGS, NOT_READ, exif_coordinates, not_read
from lib.method.errors import BundleError
from lib.method.geodesy import chord_to_rad, distance_km, rad_to_km, unit_vectors
from lib.method.model import GeoCLIP
from lib.predict.predictors import PUBLISHED, Predictor, load_predictor
from lib.runs import writing
from lib.runs.files import printable
from lib.runs.machine import print_anywhere
from lib.show.candidate_maps import MASS, candidate_map, place_names
from lib.show.world import save_map

NEARBY_KM, APART_KM = 200.0, 100.0
"""Radius of ``probability_within_200km``; candidates are farther apart than the second."""
MASS_SHARE, MASS_POINTS = 0.99, 2_000
"""For the map, each photo keeps its likeliest gallery points up to this share, at most so many."""
PLACE, TRUTH = ["latitude", "longitude"], ["true_latitude", "true_longitude"]
FOUND = ["photo", "rank", *PLACE, "probability", "probability_within_200km"]
COLUMNS = [*FOUND, "town", "country", "continent", *TRUTH, "error_km"]
RUN_FILES = ("manifest.parquet", "provenance.json")
"""A folder with one of these is a run's; what lies in it is not overwritten."""


class Prediction(NamedTuple):
    """A row a photo and candidate (``COLUMNS``); a row a photo and gallery point, the likeliest first
    (``MASS``); photos that could not be read -> reason. Probabilities are fractions."""

    table: pd.DataFrame
    mass: pd.DataFrame
    left_out: dict[str, str]


@torch.inference_mode()
def probabilities(trained: GeoCLIP, photos: torch.Tensor, embedded: torch.Tensor) -> np.ndarray:
    """Softmax over the gallery of exp(s) x cosine, float64 [n, G], of features [n, D]; not calibrated.

    ``embedded`` holds the gallery's embeddings [G, 512].
    """
    logits = trained.logits(trained.embed_photos(photos.to(embedded.device)), embedded)
    return torch.softmax(logits.double(), 1).cpu().numpy()


def predict(
    predictor: Predictor, paths: Sequence[str], root: Path = Path(), *,
    truth_deg: np.ndarray | None = None, top: int = 5, apart_km: float = APART_KM,
) -> Prediction:  # fmt: skip
    """Candidates for the photos ``paths`` below ``root``; unreadable photos are left out, with the reason.

    The first candidate is the likeliest gallery point. Each later one is the likeliest of those farther than
    ``apart_km`` from every candidate before it, of all with 0. A small gallery gives fewer than ``top``.

    Args:
        truth_deg: true places [N, 2], NaN where unknown; default: the GPS in the photos' EXIF.

    Raises:
        BundleError: a photo is named twice, ``top`` is not positive, or a feature is not finite.
    """
    if len(set(paths)) < len(paths):
        raise BundleError("a photo is named twice; name each once")
    if top < 1:
        raise BundleError(f"--top {top}: ask for at least one candidate")
    encoded, unreadable = _encoded(predictor, list(paths), root)
    gallery_deg, units = predictor.gallery_deg, unit_vectors(predictor.gallery_deg)
    candidates, masses = [], []
    for row, photo in enumerate(paths):
        if row in unreadable:
            continue
        (probability,) = probabilities(predictor.model, encoded[row : row + 1], predictor.embedded)
        order = np.argsort(-probability, kind="stable")
        likeliest = order[:MASS_POINTS]
        likeliest = likeliest[: np.searchsorted(np.cumsum(probability[likeliest]), MASS_SHARE) + 1]
        columns = photo, *gallery_deg[likeliest].T, probability[likeliest].astype(np.float32)
        masses.append(pd.DataFrame(dict(zip(MASS, columns, strict=True))))
        truth = exif_coordinates(root, photo) if truth_deg is None else truth_deg[row]
        for rank, (best, within) in enumerate(_distinct(probability, order, units, top, apart_km), 1):
            candidates.append((photo, rank, *gallery_deg[best], probability[best], within, *truth))
    table = pd.DataFrame(candidates, columns=FOUND + TRUTH)
    found_deg, true_deg = table[PLACE].to_numpy(np.float64), table[TRUTH].to_numpy(np.float64)
    table = table.assign(error_km=distance_km(true_deg, found_deg)).join(places.describe(found_deg))[COLUMNS]
    mass = pd.concat(masses, ignore_index=True) if masses else pd.DataFrame(columns=MASS)
    return Prediction(table, mass, {paths[row]: reason for row, reason in unreadable.items()})


def _encoded(predictor: Predictor, photos: list[str], root: Path) -> tuple[torch.Tensor, dict[int, str]]:
    """Features of ``photos``, float32 [N, D], as the model's training had them; why which photo has none."""
    encoder, settings, device = predictor.encoder, predictor.settings, predictor.embedded.device
    if not photos:
        return torch.empty(0, encoder.dimension), {}
    if len(photos) < 10 * settings.batch_size:  # starting processes would take longer than decoding
        settings = settings.model_copy(update={"workers": 0})
    dataset, everything = features.Photos(root, photos, encoder), [range(len(photos))]
    ((plain, _, unreadable),) = features.encode(dataset, encoder, settings, device, everything)
    return torch.from_numpy(plain).float(), unreadable


def _distinct(
    probability: np.ndarray, order: np.ndarray, units: np.ndarray, top: int, apart_km: float
) -> list[tuple[int, float]]:
    """Candidates, the likeliest first: row of the gallery, and what is likely within ``NEARBY_KM``."""
    found = []
    while len(order) and len(found) < top:
        best, order = order[0], order[1:]
        distance = rad_to_km(chord_to_rad(2.0 - 2.0 * units @ units[best]))
        found.append((best, probability[distance <= NEARBY_KM].sum()))
        if apart_km > 0.0:
            order = order[distance[order] > apart_km]
    return found


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a prediction as people read it: a row a photo and rank, percent, kilometres."""
    photo = table["photo"].map(lambda path: printable(Path(path).name))
    percent = {"probability, %": table["probability"], "within 200 km, %": table["probability_within_200km"]}
    percent = {name: 100.0 * fraction for name, fraction in percent.items()}
    shown = table.assign(photo=photo, near=place_names(table), **percent, **{"error, km": table["error_km"]})
    digits = {"latitude": 2, "longitude": 2, "probability, %": 2, "within 200 km, %": 1, "error, km": 0}
    return shown.set_index(["photo", "rank"])[["near", *digits]].round(digits)


def find_photos(named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The photos that ``named`` files and folders stand for, each once; and what of folders is left out."""
    photos, left_out = [], {}
    for name in named:
        if not Path(name).is_dir():
            photos.append(name)
            continue
        files = sorted(files_below(Path(name)))
        inside = [str(path) for path in files if path.suffix.lower() in ENDINGS]
        others = [path for path in files if path.suffix.lower() in NOT_READ]
        photos += inside
        left_out |= {str(path): not_read(path.suffix.lower()) for path in others}
        if not inside and not others:
            left_out[name] = f"no photos in this folder ({', '.join(sorted(ENDINGS))})"
    return list(dict.fromkeys(photos)), left_out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 with a sentence where no photo could be placed."""
    print_anywhere()
    parser = argparse.ArgumentParser("python -m lib.predict", description="Where were these photos taken?")
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="photos (also ARCHIVE.zip/MEMBER), or folders of photos")
    add("--model", default="quick", help=f"folder of a run or release, or {PUBLISHED} (default: quick)")
    add("--strategy", help="of a run (default: the best on validation)")
    add("--seed", type=int, help="of a run (default: the smallest)")
    add("--backbone", help="folder of the model's backbone, where it lies elsewhere")
    add("--top", type=int, default=5, help="candidates a photo (default: 5)")
    add("--map", type=Path, help="write a map as an HTML page")
    add("--csv", type=Path, help="write the candidates as a table")
    try:
        _run(parser.parse_args(arguments))
    except (BundleError, OSError) as error:
        print(f"lib.predict: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    """Predict, print the candidates, and write the files that were asked for."""
    _check_targets(options)
    photos, left_out = find_photos(options.photos)
    predictor = load_predictor(options.model, options.strategy, options.seed, options.backbone)
    print(f"model: {printable(predictor.description)}")
    found = predict(predictor, photos, top=options.top)
    left_out |= found.left_out
    for name, reason in left_out.items():
        print(f"left out {printable(name)}: {printable(reason)}", file=sys.stderr)
    if found.table.empty:
        raise BundleError("no photo could be read")
    if caution := predictor.caution(Path(), photos):
        print(caution)
    print("Probabilities are a softmax over the gallery, not calibrated.")
    for photo, rows in found.table.groupby("photo", sort=False):
        readable = for_reading(rows).droplevel("photo").dropna(axis="columns")
        print(f"\n{printable(photo)}\n{readable.to_string()}")
    if options.csv:
        with writing(options.csv) as aside:
            found.table.to_csv(aside, index=False, errors="backslashreplace")
        print(f"\nwrote {printable(str(options.csv))}")
    if options.map:
        notes, title = [f"Model: {predictor.description}."], f"Candidates of {predictor.title}"
        drawn = candidate_map(found.table, found.mass, Path(), title=title, notes=notes, warning=caution)
        print(f"wrote {printable(str(save_map(drawn, options.map)))}")
    if left_out:
        count = found.table["photo"].nunique()
        print(f"predicted {count:,} photos, left out {len(left_out):,}", file=sys.stderr)


def _check_targets(options: argparse.Namespace) -> None:
    """Refuse to write where a folder, a run's file or a file of another kind is, a photo for instance."""
    if options.csv and options.map and options.csv.resolve() == options.map.resolve():
        raise BundleError(f"{options.csv} cannot be both the table and the map; name two files")
    for path, ending in ((options.map, ".html"), (options.csv, ".csv")):
        if not path or not path.exists():
            continue
        is_of_run = any((folder / name).is_file() for folder in path.resolve().parents for name in RUN_FILES)
        if path.is_dir() or path.suffix.lower() != ending or is_of_run:
            what = f"there, and no {ending} file" if path.suffix.lower() != ending else "a run's own"
            raise BundleError(f"{path} is {what}: it is not overwritten; name another")
