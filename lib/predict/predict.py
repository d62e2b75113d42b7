"""Where was this photo taken? Candidates of a trained model for photos of one's own: ``python -m lib.predict PHOTO…``.

A model gives each point of its gallery a probability: the softmax, over the whole gallery, of exp(s) x cosine. These
probabilities are NOT calibrated: s is where training left it, and training asked for the right place among a batch and a
queue, not among this gallery. They order places, and compare them for one photo; 60 % does not mean right in six of ten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import torch

from lib.data import datasets, features, places
from lib.data.features import Photos
from lib.data.photos import ENDINGS, exif_coordinates
from lib.evaluate.evaluation import splits_of
from lib.method.errors import BundleError
from lib.method.geodesy import chord_to_rad, distance_km, rad_to_km, unit_vectors
from lib.method.model import GeoCLIP
from lib.predict.predictors import PUBLISHED, Predictor, load_predictor
from lib.runs import Run, writing
from lib.runs.files import printable
from lib.show.candidate_maps import candidate_map
from lib.show.maps import save_map

NEARBY_KM = 200.0
"""Radius of ``probability_within_200km``, kilometres: the field's region."""
APART_KM = 100.0
"""Candidates are farther apart than this, kilometres, unless asked otherwise."""
MASS_SHARE, MASS_POINTS = 0.99, 2_000
"""Kept of each photo for the map: the likeliest gallery points up to this share of the probability, at most so many."""
BLOCK = 64
"""Photos whose probabilities over the whole gallery are held at a time."""
COLUMNS = ("photo", "rank", "latitude", "longitude", "probability", "probability_within_200km",
           "town", "country", "continent", "true_latitude", "true_longitude", "error_km")  # fmt: skip


class PredictError(BundleError):
    """A prediction cannot be made as asked; the message says why and what to do."""


EXPECTED = (BundleError,)
"""Errors of which a user wants the sentence, and no traceback."""


@dataclass(frozen=True)
class Prediction:
    """What :func:`predict` found.

    Attributes:
        table: a row a photo and candidate, columns ``COLUMNS``; probabilities are fractions.
        mass: a row a photo and gallery point, the likeliest first: photo, latitude, longitude, probability (float32).
        left_out: photos that could not be read: photo, reason.
    """

    table: pd.DataFrame
    mass: pd.DataFrame
    left_out: pd.DataFrame


@torch.inference_mode()
def probabilities(trained: GeoCLIP, photos: torch.Tensor, embedded: torch.Tensor) -> np.ndarray:
    """Softmax over the gallery of z = exp(s) x cosine, float64 [n, G]; not calibrated, see the module.

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
    """Candidates for the photos ``paths`` below ``root``; those that cannot be read are left out, with the reason.

    Candidates are distinct places: the likeliest gallery point is the first; then, again and again, the likeliest of those that
    are farther than ``apart_km`` from every candidate before. 0 takes the ``top`` likeliest points, however near. There are
    fewer than ``top`` where the gallery has no more. Holds ``BLOCK`` x G probabilities at a time.

    Args:
        truth_deg: true places [N, 2], NaN where unknown; default: the GPS in the photos' EXIF.

    Raises:
        PredictError: a photo is named twice, or ``top`` or ``apart_km`` make no sense.
        FeatureError: see :func:`lib.data.features.encode`.
    """
    if len(set(paths)) < len(paths):
        raise PredictError("a photo is named twice; name each once")
    if top < 1 or not 0.0 <= apart_km < np.inf:
        raise PredictError(f"top={top}, apart_km={apart_km}: give at least one candidate, and 0 km or more")
    asked = pd.DataFrame({"id": list(paths), "path": list(paths)}, dtype=object)
    unreadable = datasets.manifest.unreadable_photos(asked, root)
    kept = np.flatnonzero(~asked["path"].isin(unreadable["path"]))
    photos = [paths[row] for row in kept]
    if truth_deg is None:
        truth_deg = np.array([exif_coordinates(root, path) for path in photos], dtype=np.float64).reshape(-1, 2)
    else:
        truth_deg = np.asarray(truth_deg, dtype=np.float64)[kept]
    encoded, units = _encoded(predictor, photos, root), unit_vectors(predictor.gallery_deg)
    chosen, masses = [], []
    for start in range(0, len(photos), BLOCK):
        block = probabilities(predictor.model, encoded[start : start + BLOCK], predictor.embedded)
        for number, probability in enumerate(block, start):
            order = np.argsort(-probability, kind="stable")
            masses.append((number, *_mass(probability, order)))
            found = _distinct(probability, order, units, top, apart_km)
            chosen += [(number, rank, *one) for rank, one in enumerate(found, 1)]
    table = _table(photos, truth_deg, predictor.gallery_deg, chosen)
    left_out = unreadable[["path", "reason"]].rename(columns={"path": "photo"})
    return Prediction(table, _mass_table(photos, predictor.gallery_deg, masses), left_out)


def predict_examples(run: Run, predictor: Predictor, count: int = 4) -> Prediction:
    """Candidates for up to ``count`` test photos of ``run``, evenly spaced in its first evaluation split; their true places are known."""
    manifest = datasets.read(run)
    rows = datasets.manifest.rows_of(manifest, splits_of(run)[0])
    spaced = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    chosen = manifest.iloc[rows[spaced]].drop_duplicates("path")
    truth_deg = datasets.manifest.coordinates(chosen)
    return predict(predictor, chosen["path"].tolist(), datasets.root_of(run), truth_deg=truth_deg)


def _encoded(predictor: Predictor, photos: list[str], root: Path) -> torch.Tensor:
    """Features of ``photos``, float32 [N, D], as the model's training had them."""
    if not photos:
        return torch.empty(0, predictor.encoder.dimension)
    settings = predictor.settings
    if len(photos) < 10 * settings.batch_size:  # to start processes would take longer than to decode
        settings = settings.model_copy(update={"workers": 0})
    dataset = Photos(root, photos, predictor.encoder)
    made = features.encode(dataset, predictor.encoder, settings, predictor.embedded.device, [range(len(photos))])
    return torch.from_numpy(np.concatenate([plain for plain, _ in made])).float()


def _mass(probability: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the likeliest gallery points, up to ``MASS_SHARE`` and ``MASS_POINTS``, and their probability."""
    likeliest = order[:MASS_POINTS]
    enough = int(np.searchsorted(np.cumsum(probability[likeliest]), MASS_SHARE)) + 1
    return likeliest[:enough], probability[likeliest[:enough]].astype(np.float32)


def _distinct(
    probability: np.ndarray, order: np.ndarray, units: np.ndarray, top: int, apart_km: float
) -> list[tuple[int, float, float]]:
    """Greedy candidates: row of the gallery [G, 3], its probability, and the probability within ``NEARBY_KM`` of it."""
    found = []
    while len(order) and len(found) < top:
        best = int(order[0])
        distance = rad_to_km(chord_to_rad(2.0 - 2.0 * units @ units[best]))
        found.append((best, float(probability[best]), float(probability[distance <= NEARBY_KM].sum())))
        order = order[1:]
        if apart_km > 0.0:
            order = order[distance[order] > apart_km]
    return found


def _table(photos: list[str], truth_deg: np.ndarray, gallery_deg: np.ndarray, chosen: list[tuple]) -> pd.DataFrame:
    """Rows (photo's number, rank, gallery's row, probability, probability nearby) as the table of a prediction."""
    names = ["number", "rank", "row", "probability", "probability_within_200km"]
    table = pd.DataFrame(chosen, columns=names).astype({"number": int, "rank": int, "row": int})
    found, truth = gallery_deg[table["row"]], truth_deg[table["number"]]
    table["photo"] = np.array(photos, dtype=object)[table["number"]]
    table["latitude"], table["longitude"] = found.T
    table["true_latitude"], table["true_longitude"] = truth.T
    table["error_km"] = distance_km(truth, found)
    return table.join(places.describe(found))[list(COLUMNS)]


def _mass_table(photos: list[str], gallery_deg: np.ndarray, masses: list[tuple]) -> pd.DataFrame:
    if not masses:
        return pd.DataFrame({"photo": [], "latitude": [], "longitude": [], "probability": []})
    numbers, rows, values = zip(*masses, strict=True)
    where = gallery_deg[np.concatenate(rows)]
    photo = np.array(photos, dtype=object)[np.repeat(numbers, list(map(len, rows)))]
    columns = {"photo": photo, "latitude": where[:, 0], "longitude": where[:, 1], "probability": np.concatenate(values)}
    return pd.DataFrame(columns)


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a prediction as people read it: one row a photo and rank, probabilities in percent, kilometres."""
    return pd.DataFrame(
        {
            "photo": table["photo"].map(lambda path: Path(path).name),
            "rank": table["rank"],
            "near": [_near(row) for row in table.itertuples()],
            "latitude": table["latitude"].round(2),
            "longitude": table["longitude"].round(2),
            "probability, %": (100.0 * table["probability"]).round(2),
            "within 200 km, %": (100.0 * table["probability_within_200km"]).round(1),
            "error, km": table["error_km"].round(0),
        }
    ).set_index(["photo", "rank"])


def _near(row: tuple) -> str:
    return ", ".join(part for part in (row.town, row.country) if part)


def find_photos(named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Photos that ``named`` files and folders come to, each once, those of a folder sorted; and folders without any."""
    photos, empty = [], {}
    for name in named:
        if Path(name).is_dir():
            inside = sorted(
                str(path) for path in Path(name).rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()
            )
            photos += inside
            if not inside:
                empty[name] = f"no photos in this folder ({', '.join(sorted(ENDINGS))})"
        else:
            photos.append(name)
    return list(dict.fromkeys(photos)), empty


def describe(table: pd.DataFrame) -> str:
    """The rows of one photo as a block of text for a terminal."""
    lines = [printable(str(table["photo"].iloc[0]))]
    for row in table.itertuples():
        lines.append(
            f"  {row.rank}  {row.latitude:8.3f} {row.longitude:9.3f}  {100 * row.probability:6.2f} %"
            f"  within {NEARBY_KM:.0f} km {100 * row.probability_within_200km:5.1f} %  near {_near(row)}, {row.continent}"
        )
    first = table.iloc[0]
    if np.isfinite(first["error_km"]):
        truth = f"{first['true_latitude']:.3f} {first['true_longitude']:.3f}"
        lines.append(f"  true place by its EXIF: {truth}; candidate 1 is {first['error_km']:,.0f} km away")
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Ends with status 1 on a mistake, as every other mistake here does; argparse's own is 2."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the arguments and ends."""
        self.exit(1, f"{self.format_usage()}lib.predict.predict: {message}\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser("python -m lib.predict", description="Where were these photos taken?")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of photos")
    parser.add_argument(
        "--model", help=f"folder of a finished run or of a release, or {PUBLISHED} (default: results/quick, or the only run)"
    )
    parser.add_argument("--strategy", help="of a run (default: the best on validation)")
    parser.add_argument("--seed", type=int, help="of a run (default: the smallest)")
    parser.add_argument("--gallery", help="train, lattice, geoclip, or a CSV with LAT and LON (default: the model's own)")
    parser.add_argument("--backbone", help="folder of the model's backbone, where it lies elsewhere")
    parser.add_argument("--top", type=int, default=5, help="candidates a photo (default: 5)")
    parser.add_argument(
        "--apart-km", type=float, default=APART_KM, help=f"candidates are farther apart (default: {APART_KM:.0f}; 0: any)"
    )
    parser.add_argument("--map", type=Path, help="write a map as an HTML page")
    parser.add_argument("--csv", type=Path, help="write the candidates as a table")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, photos that cannot be read left out and named; 1 where nothing could be predicted."""
    options = parse(arguments)
    try:
        if folders := [str(path) for path in (options.map, options.csv) if path is not None and path.is_dir()]:
            raise PredictError(f"{folders[0]} is a folder; name a file to write")
        if options.csv is not None and options.map is not None and options.csv.resolve() == options.map.resolve():
            raise PredictError(f"{options.csv} cannot be both the table and the map; name two files")
        photos, left_out = find_photos(options.photos)
        predictor = load_predictor(
            options.model, options.strategy, options.seed, options.gallery, options.backbone, options.device
        )
        print(f"model: {printable(predictor.description)}")
        found = predict(predictor, photos, top=options.top, apart_km=options.apart_km)
        left_out |= dict(found.left_out.itertuples(index=False))
        for name, reason in left_out.items():
            print(f"left out {printable(name)}: {printable(reason)}", file=sys.stderr)
        if found.table.empty:
            raise PredictError("no photo could be read")
        _report(found, predictor, photos, options)
    except EXPECTED as error:
        print(f"lib.predict.predict: {printable(str(error))}", file=sys.stderr)
        return 1
    if left_out:
        print(f"predicted {found.table['photo'].nunique():,} photos, left out {len(left_out):,}", file=sys.stderr)
    return 0


def _report(found: Prediction, predictor: Predictor, photos: list[str], options: argparse.Namespace) -> None:
    """Print the candidates, and write the files that were asked for."""
    caution = predictor.caution(Path(), photos)
    if caution:
        print(caution)
    print("Probabilities are a softmax over the gallery, not calibrated.")
    for _, rows in found.table.groupby("photo", sort=False):
        print(f"\n{describe(rows)}")
    if options.csv:
        with writing(options.csv) as aside:
            found.table.to_csv(aside, index=False, errors="backslashreplace")
        print(f"\nwrote {printable(str(options.csv))}")
    if options.map:
        notes = [note for note in (caution, f"Model: {predictor.description}.") if note]
        drawn = candidate_map(found.table, found.mass, Path(), title=f"Candidates of {predictor.title}", notes=notes)
        print(f"wrote {printable(str(save_map(drawn, options.map)))}")


if __name__ == "__main__":
    sys.exit(main())
