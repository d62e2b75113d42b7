"""The look that all figures share: colours, one look for each strategy, panels, photos and the world map."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from lib.data import places
from lib.data.photos import UNREADABLE, open_photo
from lib.data.sphere import coordinates_of
from lib.evaluate import pairs
from lib.method.geodesy import chord_to_rad, unit_vectors
from lib.method.negatives import REGISTRY

PALETTE = sns.color_palette("colorblind").as_hex()
INK, MUTED, LAND, WATER = "#1b1f24", "#6b7280", "#dfe3e6", "#ffffff"
NAMES = {
    "infonce": "GeoCLIP’s loss", "semivariogram": "the paper’s idea",
    "semivariance_margin": "distance margin", "margin_frequencies": "margin + scales",
    "infonce_frequencies": "GeoCLIP’s loss + scales", "nearest_neighbour": "nearest look-alike",
    "geoclip_pretrained": "GeoCLIP as published", "test": "random photos",
    "test_blocked": "held-out cells",
}  # fmt: skip
"""What people read for strategies and splits. Files, settings and code have the names on the left."""
FIRST = ("infonce", "semivariogram", "infonce_frequencies", "margin_frequencies", "nearest_neighbour",
         "semivariance_margin", "geoclip_pretrained")  # fmt: skip
LINES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = "osvDPX^*<"
COLOURS = (INK, *(PALETTE[k] for k in (0, 4, 3)), "#00796b", "#6a3d9a", PALETTE[1], PALETTE[9])
LOOKS = {
    name: {"color": COLOURS[k % 8], "ls": LINES[k % 7], "marker": MARKERS[k % 9]}
    for k, name in enumerate(dict.fromkeys([*FIRST, *REGISTRY]))
}
"""Of those in ``FIRST`` nothing is the same, and no two have both line and marker in common."""
SPLIT_COLOURS = {"train": "#9aa5b1", "validation": PALETTE[1], "test": PALETTE[0], "test_blocked": PALETTE[3]}
KIND_COLOURS = {pairs.FALSE_NEGATIVE: PALETTE[0], pairs.HARD_NEGATIVE: PALETTE[3], pairs.EASY: MUTED}
KILOMETRES = mpl.ticker.StrMethodFormatter("{x:,.0f}")
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 200, "figure.facecolor": "white", "font.size": 9.5,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "legend.frameon": False, "axes.grid": True, "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.7,
}  # fmt: skip

styled = mpl.rc_context(STYLE, Path(mpl.get_data_path(), "matplotlibrc"))
"""Decorator: draw with ``STYLE`` on matplotlib's defaults, and leave the user's settings as they were."""


def named(name: str, splits: Collection[str] = NAMES) -> str:
    """What people read for a strategy or split; ``test`` is of random photos only beside held-out cells among
    ``splits``: alone it may be anybody's choice."""
    return name if name == "test" and "test_blocked" not in splits else NAMES.get(name, name)


def look_of(strategy: str) -> dict[str, Any]:
    """A strategy's color, ls and marker, the same in every figure; an unlisted one's dots are far apart."""
    turn, colour = divmod(crc32(strategy.encode()), len(COLOURS))
    return LOOKS.get(strategy, {"color": COLOURS[colour], "ls": (0, (1, 6)), "marker": ">phd"[turn % 4]})


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A Figure of ``size`` inches outside pyplot's global state, and its axes [rows, columns]."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def panels_by_split(
    table: pd.DataFrame, width: float, height: float, **options: Any
) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A Figure with one panel a split, titled, and each panel's axes, split and rows of ``table``."""
    groups = list(table.groupby("split", sort=False))
    figure, axes = panels(1, len(groups), (width * len(groups), height), **options)
    for axis, (split, _) in zip(axes[0], groups, strict=True):
        axis.set_title(named(split, table["split"].unique()))
    return figure, [(axis, *group) for axis, group in zip(axes[0], groups, strict=True)]


def logarithmic_km(axis: Axes, **settings: Any) -> None:
    """Distances in km on a logarithmic horizontal axis, written out; and other ``settings`` of ``axis``."""
    axis.set(xscale="log", **settings)
    axis.xaxis.set_major_formatter(KILOMETRES)


def legend_below(figure: Figure, axis: Axes) -> None:
    """One legend for all panels, of what ``axis`` shows."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=8)


def brightened(root: Path, path: str, smallest_px: int) -> np.ndarray:
    """The photo at ``root`` / ``path``, uint8 [H, W, 3]. A dark one is brightened, threefold at most,
    until a hundredth of its values are nearly white. Raises what ``UNREADABLE`` lists."""
    pixels = np.asarray(open_photo(root, path, smallest_px=smallest_px).convert("RGB"), dtype=float)
    factor = np.clip(240.0 / max(np.percentile(pixels, 99), 1.0), 1.0, 3.0)
    return np.minimum(pixels * factor, 255.0).astype(np.uint8)


def show_photo(axis: Axes, root: Path, path: str, title: str) -> None:
    """The photo at ``root`` / ``path``, :func:`brightened`, instead of ``axis``, with a ``title``; or that it
    is not there."""
    try:
        axis.imshow(brightened(root, path, 400))
    except UNREADABLE:
        axis.text(0.5, 0.5, "This photo is not there\nor cannot be read.", ha="center", va="center")
    axis.set_title(title, fontsize=8, fontweight="normal", loc="center")
    axis.set_axis_off()


def place_label(latitude: float, longitude: float) -> str:
    """A place in degrees: ``52.5°N 13.4°E``."""
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.1f}°{north} {abs(longitude):.1f}°{east}"


def world(figure: FigureBase, *place: Any) -> Axes:
    """Axes at ``place`` (as ``add_subplot`` has it) with land in grey; Mollweide, equal-area."""
    axis = figure.add_subplot(*place, projection="mollweide")
    mask, colours = places.land_mask()[::6, ::6].astype(float), mpl.colors.ListedColormap([WATER, LAND])
    latitude, longitude = (np.deg2rad(np.linspace(-k / 4, k / 4, k + 1)) for k in mask.shape)
    axis.pcolormesh(longitude, latitude, mask, cmap=colours, rasterized=True, zorder=0)
    axis.grid(True, linewidth=0.3)
    axis.set_xticks(np.deg2rad([-120, -60, 0, 60, 120]), labels=[])
    axis.set_yticks(np.deg2rad([-60, -30, 0, 30, 60]), labels=["60°S", "30°S", "0°", "30°N", "60°N"])
    return axis


def great_circle(ends_deg: np.ndarray) -> np.ndarray:
    """The shortest way between two places [2, 2] in degrees, for a :func:`world`: longitudes and latitudes,
    radians [2, 181], at most a degree apart, NaN where it crosses the 180th meridian."""
    start, end = unit_vectors(ends_deg)
    half_rad = max(float(chord_to_rad(np.sum((start - end) ** 2))) / 2.0, 1e-9)
    share = (1.0 + np.tan(np.linspace(-half_rad, half_rad, 181)) / np.tan(half_rad)) / 2.0
    points = coordinates_of(start + share[:, None] * (end - start))
    points[1:][np.abs(np.diff(points[:, 1])) > 180.0] = np.nan
    return np.radians(points[:, ::-1]).T


def scatter(axis: Axes, frame: pd.DataFrame, **options: Any) -> None:
    """The places of ``frame`` (latitude, longitude in degrees) as dots on a :func:`world`."""
    at = np.deg2rad(frame["longitude"]), np.deg2rad(frame["latitude"])
    axis.scatter(*at, **{"linewidths": 0.0, "rasterized": True, **options})
