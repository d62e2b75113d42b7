"""Where was this photo taken? Candidates of a trained model: ``python -m lib.predict PHOTO…``.

A model gives each point of its gallery a probability, the softmax over the gallery of exp(s) x cosine. These
probabilities are NOT calibrated: s is where training left it, and training asked for the right place among a
batch and a queue, not among this gallery. They rank the places of one photo; 60 % is not right in 6 of 10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

NEARBY_KM = 200.0
"""Radius of ``probability_within_200km``, kilometres: the field's region."""
APART_KM = 100.0
"""Candidates are farther apart than this, kilometres."""
MASS_SHARE, MASS_POINTS = 0.99, 2_000
"""For the map, each photo keeps its likeliest gallery points up to this share, at most so many."""
FOUND = ["number", "rank", "row", "probability", "probability_within_200km"]
COLUMNS = ["photo", "rank", "latitude", "longitude", *FOUND[3:],
           "town", "country", "continent", "true_latitude", "true_longitude", "error_km"]  # fmt: skip
RUN_FILES = ("manifest.parquet", "provenance.json")
"""A folder with one of these is a run's; what lies in it is not overwritten."""


@dataclass(frozen=True)
class Prediction:
    """What :func:`predict` found.

    Attributes:
        table: a row a photo and candidate, columns ``COLUMNS``; probabilities are fractions.
        mass: a row a photo and gallery point, the likeliest first, columns ``MASS`` (probability: float32).
        left_out: photos that could not be read -> reason.
    """

    table: pd.DataFrame
    mass: pd.DataFrame
    left_out: dict[str, str]


@torch.inference_mode()
def probabilities(trained: GeoCLIP, photos: torch.Tensor, embedded: torch.Tensor) -> np.ndarray:
    """Softmax over the gallery of z = exp(s) x cosine, float64 [n, G]; not calibrated.

    Args:
        photos: frozen features v [n, D].
        embedded: the gallery's embeddings [G, 512].
    """
    logits = trained.logits(trained.embed_photos(photos.to(embedded.device)), embedded)
    return torch.softmax(logits.double(), 1).cpu().numpy()


def predict(
    predictor: Predictor,
    paths: Sequence[str],
    root: Path = Path(),
    *,
    truth_deg: np.ndarray | None = None,
    top: int = 5,
    apart_km: float = APART_KM,
) -> Prediction:
    """Candidates for the photos ``paths`` below ``root``; unreadable photos are left out, with the reason.

    The first candidate is the likeliest gallery point. Each later one is the likeliest of those farther than
    ``apart_km`` from every candidate before it; with 0 the ``top`` likeliest points are taken. A small
    gallery gives fewer.

    Args:
        truth_deg: true places [N, 2], NaN where unknown; default: the GPS in the photos' EXIF.

    Raises:
        BundleError: a photo is named twice, a number is impossible, or a feature is not finite.
    """
    if len(set(paths)) < len(paths):
        raise BundleError("a photo is named twice; name each once")
    if top < 1:
        raise BundleError(f"--top {top}: ask for at least one candidate")
    encoded, unreadable = _encoded(predictor, list(paths), root)
    kept = np.array([row for row in range(len(paths)) if row not in unreadable], dtype=int)
    photos, encoded, gallery_deg = [paths[row] for row in kept], encoded[kept], predictor.gallery_deg
    if truth_deg is None:
        truth_deg = np.reshape([exif_coordinates(root, path) for path in photos], (-1, 2))
    else:
        truth_deg = np.asarray(truth_deg, dtype=np.float64)[kept]
    units = unit_vectors(gallery_deg)
    candidates, masses = [], [pd.DataFrame(columns=MASS)] if not photos else []
    for number, photo in enumerate(photos):
        (probability,) = probabilities(predictor.model, encoded[number : number + 1], predictor.embedded)
        order = np.argsort(-probability, kind="stable")
        masses.append(_mass(photo, gallery_deg, probability, order))
        found = _distinct(probability, order, units, top, apart_km)
        candidates += [(number, rank, *one) for rank, one in enumerate(found, 1)]
    table = pd.DataFrame(candidates, columns=FOUND).astype({"number": int, "rank": int, "row": int})
    found_deg, true_deg = gallery_deg[table["row"]], truth_deg[table["number"]]
    table["photo"] = np.array(photos, dtype=object)[table["number"]]
    table[["latitude", "longitude"]], table[["true_latitude", "true_longitude"]] = found_deg, true_deg
    table["error_km"] = distance_km(true_deg, found_deg)
    table = table.join(places.describe(found_deg))[COLUMNS]
    left_out = {paths[row]: reason for row, reason in unreadable.items()}
    return Prediction(table, pd.concat(masses, ignore_index=True), left_out)


def _encoded(predictor: Predictor, photos: list[str], root: Path) -> tuple[torch.Tensor, dict[int, str]]:
    """Features of ``photos``, float32 [N, D], as the model's training had them; why which photo has none."""
    if not photos:
        return torch.empty(0, predictor.encoder.dimension), {}
    settings = predictor.settings
    if len(photos) < 10 * settings.batch_size:  # starting processes would take longer than decoding
        settings = settings.model_copy(update={"workers": 0})
    dataset = features.Photos(root, photos, predictor.encoder)
    device, everything = predictor.embedded.device, [range(len(photos))]
    ((plain, _, unreadable),) = features.encode(dataset, predictor.encoder, settings, device, everything)
    return torch.from_numpy(plain).float(), unreadable


def _mass(photo: str, gallery_deg: np.ndarray, probability: np.ndarray, order: np.ndarray) -> pd.DataFrame:
    """The likeliest gallery points of ``photo``, up to ``MASS_SHARE`` and ``MASS_POINTS``."""
    rows = order[:MASS_POINTS]
    rows = rows[: int(np.searchsorted(np.cumsum(probability[rows]), MASS_SHARE)) + 1]
    columns = (photo, *gallery_deg[rows].T, probability[rows].astype(np.float32))
    return pd.DataFrame(dict(zip(MASS, columns, strict=True)))


def _distinct(
    probability: np.ndarray, order: np.ndarray, units: np.ndarray, top: int, apart_km: float
) -> list[tuple[int, float, float]]:
    """Candidates, the likeliest first: row of the gallery, its probability, the sum within ``NEARBY_KM``."""
    found = []
    while len(order) and len(found) < top:
        best = int(order[0])
        distance = rad_to_km(chord_to_rad(2.0 - 2.0 * units @ units[best]))
        found.append((best, float(probability[best]), float(probability[distance <= NEARBY_KM].sum())))
        order = order[1:]
        if apart_km > 0.0:
            order = order[distance[order] > apart_km]
    return found


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a prediction as people read it: a row a photo and rank, percent, kilometres."""
    columns = {
        "photo": table["photo"].map(lambda path: printable(Path(path).name)),
        "rank": table["rank"],
        "near": place_names(table),
        "latitude": table["latitude"].round(2),
        "longitude": table["longitude"].round(2),
        "probability, %": (100.0 * table["probability"]).round(2),
        "within 200 km, %": (100.0 * table["probability_within_200km"]).round(1),
        "error, km": table["error_km"].round(0),
    }
    return pd.DataFrame(columns).set_index(["photo", "rank"])


def find_photos(named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The photos that ``named`` files and folders stand for, each once; and what of folders is left out."""
    photos, left_out = [], {}
    for name in named:
        if not Path(name).is_dir():
            photos.append(name)
            continue
        endings = {str(path): path.suffix.lower() for path in sorted(files_below(Path(name)))}
        inside = [path for path, ending in endings.items() if ending in ENDINGS]
        others = {path: not_read(ending) for path, ending in endings.items() if ending in NOT_READ}
        photos, left_out = photos + inside, left_out | others
        if not inside and not others:
            left_out[name] = f"no photos in this folder ({', '.join(sorted(ENDINGS))})"
    return list(dict.fromkeys(photos)), left_out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 1 with a sentence where no photo could be placed."""
    print_anywhere()
    options = parse(arguments)
    try:
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
        _report(found, predictor, photos, options)
    except (BundleError, OSError) as error:
        print(f"lib.predict: {printable(str(error))}", file=sys.stderr)
        return 1
    if left_out:
        count = found.table["photo"].nunique()
        print(f"predicted {count:,} photos, left out {len(left_out):,}", file=sys.stderr)
    return 0


def _check_targets(options: argparse.Namespace) -> None:
    """Refuse to write where a folder, a run's file or a file of another kind is, a photo for instance."""
    for path, ending in ((options.map, ".html"), (options.csv, ".csv")):
        if path and path.is_dir():
            raise BundleError(f"{path} is a folder; name a file to write")
        if path and path.exists() and path.suffix.lower() != ending:
            raise BundleError(f"{path} is there, and no {ending} file: it is not overwritten; name another")
        if path and path.exists() and any(_is_run(folder) for folder in path.resolve().parents):
            raise BundleError(f"{path} is a run's own: it is not overwritten; name another")
    if options.csv and options.map and options.csv.resolve() == options.map.resolve():
        raise BundleError(f"{options.csv} cannot be both the table and the map; name two files")


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def _report(found: Prediction, predictor: Predictor, photos: list[str], options: argparse.Namespace) -> None:
    """Print the candidates, and write the files that were asked for."""
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
