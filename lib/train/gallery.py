"""Galleries of candidate coordinates, and the retrieval of photos among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.data import datasets, places, sphere, tables
from lib.data.features import NOT_DECODED, Features
from lib.data.places import photo_places
from lib.method.errors import BundleError
from lib.method.model import EMBEDDING, GeoCLIP
from lib.runs import Run
from lib.runs.machine import note_once
from lib.settings import PROJECT, Evaluation

NAMES = ("train", "lattice", "geoclip")
FAR_KM = 1_000
"""Of a gallery's file most of whose places lie farther from all training photos it is said."""
GALLERY_BLOCK = 8_192
"""Gallery places that are compared with a block of photos at a time."""


def coordinates(run: Run, manifest: pd.DataFrame) -> np.ndarray:
    """Gallery of ``run``, float64 [G, 2]: ``evaluation.gallery`` is train, lattice, geoclip or a CSV's path.

    * ``train``: the training split's coordinates (GeoCLIP's protocol).
    * ``lattice``: a Fibonacci lattice of ``evaluation.lattice_km`` on land, within the manifest's latitudes.
    * ``geoclip``: the 100,000 photo places of the package ``geoclip``.

    Raises a BundleError for an unknown name, and for a CSV that :func:`read_csv` refuses.
    """
    name = find(run.settings.evaluation)
    if name == "train":
        return datasets.manifest.coordinates(manifest)[datasets.manifest.rows_of(manifest, "train")]
    if name == "lattice":
        points = sphere.lattice(run.settings.evaluation.lattice_km)
        readable = manifest["split"] != NOT_DECODED
        within = np.abs(points[:, 0]) <= manifest["latitude"][readable].abs().max()
        return points[within & places.is_land(points)]
    if name == "geoclip":
        return photo_places()
    found, train = read_csv(PROJECT / name), datasets.manifest.rows_of(manifest, "train")
    some = found[:: max(1, len(found) // 1_000)]
    _, distance_km = sphere.nearest(some, datasets.manifest.coordinates(manifest)[train])
    if (far := (distance_km > FAR_KM).mean()) > 0.5:
        said = f"{far:.0%} of its places are over {FAR_KM:,} km from every training photo"
        note_once(f"{PROJECT / name}: {said}; another region, or are its columns swapped?")
    return found


def find(settings: Evaluation) -> str:
    """``settings.gallery``. BundleError: it names no gallery and no CSV."""
    name = settings.gallery
    if name not in NAMES and not name.lower().endswith(".csv"):
        known = f"{', '.join(NAMES)} or the path of a CSV"
        raise BundleError(f"evaluation.gallery={name!r} is unknown; take {known}")
    return name


def input_files(run: Run) -> list[Path]:
    """Files that the gallery is read from besides the manifest: its CSV, or none."""
    name = run.settings.evaluation.gallery
    return [PROJECT / name] if name.lower().endswith(".csv") else []


def read_csv(path: Path) -> np.ndarray:
    """Coordinates of a table with columns such as LAT and LON (as ``geoclip`` has it), float64 [G, 2].
    BundleError: no such file, columns missing or doubled, or a row that is no place."""
    return datasets.manifest.coordinates(tables.read(path).frame)


@torch.inference_mode()
def embed(
    model: GeoCLIP, coordinates_deg: np.ndarray, device: torch.device, block: int = 4_096
) -> torch.Tensor:
    """Unit embeddings [G, 512] of a gallery, ``block`` places at a time."""
    tensor = torch.tensor(coordinates_deg, dtype=torch.float32)
    embedded = torch.empty(len(tensor), EMBEDDING, device=device)
    for start in range(0, len(tensor), block):
        embedded[start : start + block] = model.embed_places(tensor[start : start + block].to(device))
    return embedded


@torch.inference_mode()
def search(model: GeoCLIP, frozen: Features, rows: np.ndarray, gallery_deg: np.ndarray) -> np.ndarray:
    """Row of the gallery [G, 2] that ``model`` finds most similar to each of the photos ``rows`` [n] of
    ``frozen``, int64 [n]; of equals the first. Holds the gallery's embeddings and 4,096 photos' features."""
    embedded = embed(model, gallery_deg, model.logit_scale.device)
    blocks = np.array_split(rows, max(1, -(-len(rows) // 4_096)))
    return torch.cat([retrieve(model, frozen.rows(part), embedded)[1] for part in blocks]).numpy()


@torch.inference_mode()
def retrieve(
    model: GeoCLIP, photos: torch.Tensor, gallery: torch.Tensor, block: int = 1_024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and row of the place of ``gallery``, embeddings [G, 512], that is most similar to each of
    ``photos``, frozen features [N, D]: both [N]. Holds ``block`` x ``GALLERY_BLOCK`` similarities."""
    parts = photos.split(block)
    found = [most_similar(model.embed_photos(part.to(gallery.device)), gallery) for part in parts]
    best, rows = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return best, rows


def most_similar(vectors: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and row of the unit vector of ``gallery`` [G, K] most similar to each of ``vectors`` [N, K],
    both [N]; of equals the first. Holds N x ``GALLERY_BLOCK`` similarities."""
    best = vectors.new_full((len(vectors),), -torch.inf)
    rows = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, len(gallery), GALLERY_BLOCK):
        with torch.autocast(gallery.device.type, enabled=False):  # in bfloat16 many places tie
            cosine, row = (vectors @ gallery[start : start + GALLERY_BLOCK].T).max(1)
        rows = torch.where(cosine > best, row + start, rows)
        best = torch.maximum(cosine, best)
    return best, rows
