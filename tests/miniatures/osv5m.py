"""OpenStreetView-5M in miniature: the hub's layout and names, a few hundred coloured photos, and what goes
wrong in it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lib.data.sphere import uniform_on_sphere

SHARDS = {"train": [120, 120], "test": [60]}
BROKEN, NO_PHOTO, NO_ROW = "train 0 3", "train 1 5", "777000777000777"
"""One broken photo and one row without photo, by split, shard and position; the id of the photo without
row."""


def photo(latitude: float, longitude: float, generator: np.random.Generator, px: int = 48) -> bytes:
    """A JPEG whose colours tell roughly where it was taken."""
    colour = np.array(
        [90 + latitude, 128 + 100 * np.cos(np.radians(longitude)), 128 + 100 * np.sin(np.radians(longitude))]
    )
    coarse = (colour + generator.normal(0, 25, (6, 6, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((px + 16, px), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write(root: Path, seed: int = 0) -> dict[str, list[list[str]]]:
    """Write ``root``/{train,test}.csv and images/{train,test}/NN.zip; return the ids of each split and
    shard."""
    generator, known = np.random.default_rng(seed), {}
    for split, sizes in SHARDS.items():
        coordinates = uniform_on_sphere(sum(sizes), generator, 65.0)
        ids = [str(10**14 + int(number)) for number in generator.choice(10**12, sum(sizes), replace=False)]
        ends = np.cumsum(sizes)
        known[split] = [ids[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        _table(ids, coordinates, generator).to_csv(root / f"{split}.csv", index=False)
        for shard, of_shard in enumerate(known[split]):
            archive = root / "images" / split / f"{shard:02d}.zip"
            archive.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(archive, "w") as file:
                for position, name in enumerate(of_shard):
                    label = f"{split} {shard} {position}"
                    if label == NO_PHOTO:
                        continue
                    content = photo(*coordinates[ids.index(name)], generator)
                    file.writestr(
                        f"{shard:02d}/{name}.jpg",
                        content[: len(content) // 2] if label == BROKEN else content,
                    )
                if split == "train" and shard == 0:
                    file.writestr(f"{shard:02d}/{NO_ROW}.jpg", photo(0.0, 0.0, generator))
    return known


def _table(ids: list[str], coordinates: np.ndarray, generator: np.random.Generator) -> pd.DataFrame:
    """All columns of the hub's train.csv, in their order, some of them empty here and there."""
    count, grids = len(ids), (5000, 25000, 1000, 50000, 12500, 500, 2500)
    return pd.DataFrame(
        {
            "id": ids,
            "latitude": coordinates[:, 0].round(12),
            "longitude": coordinates[:, 1].round(12),
            "thumb_original_url": "",
            "country": generator.choice(["NZ", "FR", "NA", "BR"], count),  # NA: Namibia, not a missing value
            "sequence": "s",
            "captured_at": generator.integers(10**12, 2 * 10**12, count),
            "lon_bin": 0,
            "lat_bin": 8,
            "cell": "(0, 8)",
            "region": generator.choice(["Chatham Islands", "Bretagne"], count),
            "sub-region": np.where(generator.random(count) < 0.5, None, "somewhere"),
            "city": generator.choice(["Waitangi", "Brest"], count),
            "land_cover": generator.integers(0, 12, count).astype(float),
            "road_index": generator.random(count),
            "drive_side": generator.integers(0, 2, count),
            "climate": generator.integers(0, 30, count),
            "soil": generator.integers(0, 15, count),
            "dist_sea": generator.random(count),
            **{f"quadtree_10_{size}": 0 for size in grids},
            "unique_region": "Chatham Islands_NZ",
            "unique_sub-region": "",
            "unique_city": "Waitangi_NaN_Chatham Islands_NZ",
            "unique_country": "NZ",
            "creator_username": "somebody",
            "creator_id": generator.integers(10**9, 10**14, count),
        }
    )
