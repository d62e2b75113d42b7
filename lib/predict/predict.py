"""Where was this photo taken? Candidates of a trained model: ``python -m lib.predict PHOTO…``.

A probability is the softmax over the gallery of exp(s) x cosine. It ranks the places of one photo. It is NOT
calibrated: training asked for the right place among a batch and a queue, not among this gallery.
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
from lib.data.folder import photos_below
from lib.data.photos import ENDINGS, exif_coordinates
from lib.method.errors import BundleError
from lib.method.geodesy import chord_to_rad, distance_km, rad_to_km, unit_vectors
from lib.method.model import GeoCLIP
from lib.predict.predictors import PUBLISHED, Predictor, load_predictor
from lib.runs import writing
from lib.runs.files import printable
from lib.runs.machine import print_anywhere
from lib.show.candidate_maps import MASS, candidate_map, place_names
from lib.show.world import save_map

NEARBY_KM, APART_KM = 200.0, 100.0  # of ``probability_within_200km``; between candidates
MASS_SHARE, MASS_POINTS = 0.99, 2_000  # of a photo's likeliest gallery points, on the map
PLACE, TRUTH = ["latitude", "longitude"], ["true_latitude", "true_longitude"]
FOUND = ["photo", "rank", *PLACE, "probability", "probability_within_200km"]
COLUMNS = [*FOUND, "town", "country", "continent", *TRUTH, "error_km"]


class Prediction(NamedTuple):
    """A row a photo and candidate (``COLUMNS``); a row a photo and gallery point, the likeliest first
    (``MASS``); photos that could not be read -> reason. Probabilities are fractions."""

    table: pd.DataFrame
    mass: pd.DataFrame
    left_out: dict[str, str]


@torch.inference_mode()
def probabilities(trained: GeoCLIP, photos: torch.Tensor, embedded: torch.Tensor) -> np.ndarray:
    """Softmax over the ``embedded`` gallery [G, 512], float64 [n, G], of features [n, D]; not calibrated."""
    logits = trained.logits(trained.embed_photos(photos.to(embedded.device)), embedded)
    return torch.softmax(logits.double(), 1).cpu().numpy()


def predict(
    predictor: Predictor, paths: Sequence[str], root: Path = Path(), *,
    truth_deg: np.ndarray | None = None, top: int = 5, apart_km: float = APART_KM,
) -> Prediction:  # fmt: skip
    """Candidates for the photos ``paths`` below ``root``; unreadable photos are left out, with the reason.

    The first candidate is the likeliest gallery point. Each later one is the likeliest of those farther than
    ``apart_km`` from every candidate before it, of all with 0. A small gallery gives fewer than ``top``.
    ``truth_deg`` [N, 2], NaN where unknown, is by default the GPS in the photos' EXIF.
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
        most = order[:MASS_POINTS]
        most = most[: np.searchsorted(np.cumsum(probability[most]), MASS_SHARE) + 1]
        columns = photo, *gallery_deg[most].T, probability[most].astype(np.float32)
        masses.append(pd.DataFrame(dict(zip(MASS, columns, strict=True))))
        truth = exif_coordinates(root, photo) if truth_deg is None else truth_deg[row]
        for rank in range(1, top + 1):
            if not len(order):
                break
            best, order = order[0], order[1:]
            distance = rad_to_km(chord_to_rad(2.0 - 2.0 * units @ units[best]))
            within = probability[distance <= NEARBY_KM].sum()
            candidates.append((photo, rank, *gallery_deg[best], probability[best], within, *truth))
            order = order[distance[order] > apart_km] if apart_km > 0.0 else order
    table = pd.DataFrame(candidates, columns=FOUND + TRUTH)
    found_deg, true_deg = table[PLACE].to_numpy(np.float64), table[TRUTH].to_numpy(np.float64)
    table = table.assign(error_km=distance_km(true_deg, found_deg)).join(places.describe(found_deg))[COLUMNS]
    mass = pd.concat(masses, ignore_index=True) if masses else pd.DataFrame(columns=MASS)
    return Prediction(table, mass, {paths[row]: reason for row, reason in unreadable.items()})


def _encoded(predictor: Predictor, photos: list[str], root: Path) -> tuple[torch.Tensor, dict[int, str]]:
    """Features of ``photos``, float32 [N, D], as the model's training had them; why which photo has none."""
    settings, dataset = predictor.settings, features.Photos(root, photos, predictor.encoder)
    if len(photos) < 10 * settings.batch_size:  # starting processes would take longer than decoding
        settings = settings.model_copy(update={"workers": 0})
    arguments = dataset, predictor.encoder, settings, predictor.embedded.device
    ((plain, _, unreadable),) = features.encode(*arguments, [range(len(photos))])
    return torch.from_numpy(plain).float(), unreadable


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a prediction as people read it: a row a photo and rank, percent, kilometres."""
    digits = {"latitude": 2, "longitude": 2, "probability, %": 2, "within 200 km, %": 1, "error, km": 0}
    shown = table.set_index([table["photo"].map(lambda path: printable(Path(path).name)), "rank"])
    percent = 100.0 * shown[["probability", "probability_within_200km"]]
    columns = place_names(shown), shown[PLACE], percent, shown["error_km"]
    return pd.concat(columns, axis=1).set_axis(["near", *digits], axis=1).round(digits)


def find_photos(named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The photos that ``named`` files and folders stand for, each once; and the folders without any."""
    photos, left_out = [], {}
    for name in named:
        inside = [str(path) for path in photos_below(Path(name))] if Path(name).is_dir() else [name]
        photos += inside
        if not inside:
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
    for path, ending in ((options.map, ".html"), (options.csv, ".csv")):
        if path and path.suffix.lower() != ending:  # it may be a photo
            raise BundleError(f"{path} is not overwritten: name a file that ends in {ending}")
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
        told = {"title": f"Candidates of {predictor.title}", "notes": [f"Model: {predictor.description}."]}
        drawn = candidate_map(found.table, found.mass, Path(), warning=caution, **told)
        print(f"wrote {printable(str(save_map(drawn, options.map)))}")
    if left_out:
        predicted = f"predicted {found.table['photo'].nunique():,} photos"
        print(f"{predicted}, left out {len(left_out):,}", file=sys.stderr)
