"""Pictures that answer to sliders: the curve and its weights, a photo's look-alikes, the learned curve, two strategies.

Each is one matplotlib figure whose ground is drawn once and whose moving parts are drawn anew at every move. In a notebook that
somebody looks at, widgets (ipywidgets) stand above it; where there are none, or where nobody looks (``PICTURES_ONLY``), the same
picture stands still, as it is at the start. Draws, and computes nothing that a table should hold.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from lib.data import datasets, features
from lib.data.photos import UNREADABLE, open_photo
from lib.evaluate import pairs
from lib.method import negatives
from lib.method import semivariogram as sv
from lib.method.errors import BundleError
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, km_to_rad
from lib.method.negatives import Pairs
from lib.runs import Run
from lib.show.figures import (
    INK,
    KILOMETRES,
    KIND_COLOURS,
    MUTED,
    PALETTE,
    STRATEGY_COLOURS,
    STYLE,
    _place_label,
    _world,
)
from lib.show.maps import great_circle

PICTURES_ONLY = "SEMIVARIOGRAM_PICTURES_ONLY"
"""Environment variable that :mod:`lib.pipeline` sets for its kernels: pictures instead of widgets."""
MOST_PHOTOS = 20_000
"""Training photos among which look-alikes are sought: their unit features are held in memory, 5 kB each."""
MOST_PAIRS = 5_000
"""Pairs that are classified and weighed at every move."""
SHARPNESS_DPI = 100
TILE_PX = 96
RULES = ("semivariogram", "hard_only", "false_only", "residual", "decayed", "semivariance_margin", "similarity")
"""Strategies whose log-weights follow from distance and look of a pair alone."""
KIND_MARKERS = {pairs.FALSE_NEGATIVE: "o", pairs.HARD_NEGATIVE: "^", pairs.EASY: "s"}
"""Told apart without colour too."""


@dataclass(frozen=True)
class Slider:
    """A number that the reader moves; ``is_log``: in steps of a factor."""

    label: str
    value: float
    low: float
    high: float
    step: float = 1.0
    is_log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    label: str
    value: str
    options: tuple[str, ...]


def is_watched() -> bool:
    """Whether widgets make sense: this is a Jupyter kernel, ipywidgets is there, and ``PICTURES_ONLY`` is not set."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return has_widgets and "ipykernel" in sys.modules and not os.environ.get(PICTURES_ONLY)


class Scene(ABC):
    """A figure with a ground that is drawn once and ``moving`` artists that are drawn at every move.

    Attributes:
        controls: what the reader can move, by name.
        buttons: label -> a function that, given the values, returns those that the button sets.
    """

    controls: dict[str, Slider | Choice]

    def __init__(self, size: tuple[float, float]) -> None:
        self.figure = Figure(figsize=size, dpi=SHARPNESS_DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.moving: list[mpl.artist.Artist] = []
        self.buttons: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self._ground = None

    def start(self) -> dict[str, Any]:
        """The values of the controls before anybody moves one."""
        return {name: control.value for name, control in self.controls.items()}

    @abstractmethod
    def move(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set the moving artists to ``values``; returns changes that controls must follow, such as another number of photos."""

    def png(self, values: Mapping[str, Any]) -> bytes:
        """The picture at ``values``."""
        with mpl.rc_context(STYLE):
            self.move(values)
            if self._ground is None:
                for artist in self.moving:
                    artist.set_animated(True)
                self.canvas.draw()
                self._ground = self.canvas.copy_from_bbox(self.figure.bbox)
            self.canvas.restore_region(self._ground)
            for artist in self.moving:
                self.figure.draw_artist(artist)
        file = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(file, "PNG", compress_level=1)
        return file.getvalue()


class Explorer:
    """A scene for a notebook: widgets where somebody looks, else its picture."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._box = None

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        still = {"image/png": self.scene.png(self.scene.start()), "text/plain": type(self.scene).__doc__ or ""}
        return still if not is_watched() else self.widget()._repr_mimebundle_() | {"image/png": still["image/png"]}

    def widget(self) -> Any:
        """Controls above the picture, which is drawn anew at every move (ipywidgets.VBox)."""
        if self._box is None:
            self._box = _box(self.scene)
        return self._box


def _box(scene: Scene) -> Any:
    """The widgets of ``scene``, wired to its picture."""
    import ipywidgets

    made = {name: _control(control) for name, control in scene.controls.items()}
    picture = ipywidgets.Image(value=scene.png(scene.start()), format="png", layout={"max_width": "100%"})
    said = ipywidgets.Output()  # what goes wrong in a callback would otherwise be said nowhere

    def redraw(_: Any = None) -> None:
        """The picture at the controls' values."""
        with said:
            picture.value = scene.png({name: control.value for name, control in made.items()})

    def press(change: Callable[[dict[str, Any]], dict[str, Any]], _: Any) -> None:
        """Set the controls to what a button says."""
        with said:
            for name, value in change({name: control.value for name, control in made.items()}).items():
                made[name].value = value

    for control in made.values():
        control.observe(redraw, "value")
    buttons = []
    for label, change in scene.buttons.items():
        buttons.append(ipywidgets.Button(description=label, layout={"width": "auto"}))
        buttons[-1].on_click(lambda button, change=change: press(change, button))
    row = ipywidgets.Box([*made.values(), *buttons], layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([row, picture, said])


def _control(control: Slider | Choice) -> Any:
    """The widget of one control."""
    import ipywidgets

    common = {"description": control.label, "style": {"description_width": "initial"}, "layout": {"width": "25em"}}
    if isinstance(control, Choice):
        return ipywidgets.Dropdown(options=control.options, value=control.value, **common)
    if control.is_log:
        low, high = np.log10(control.low), np.log10(control.high)
        return ipywidgets.FloatLogSlider(control.value, min=low, max=high, step=0.02, readout_format=",.0f", **common)
    if isinstance(control.value, int):
        return ipywidgets.IntSlider(control.value, int(control.low), int(control.high), int(control.step), **common)
    return ipywidgets.FloatSlider(control.value, min=control.low, max=control.high, step=control.step, **common)


@lru_cache(maxsize=4_096)
def tile(root: Path, path: str, px: int = TILE_PX) -> np.ndarray:
    """The photo at ``path`` below ``root`` as a square, uint8 [px, px, 3]; grey where it cannot be read."""
    square = Image.new("RGB", (px, px), "#d1d5db")
    try:
        photo = open_photo(root, path, smallest_px=px)
    except UNREADABLE:
        return np.asarray(square)
    photo = ImageOps.contain(photo, (px, px))
    square.paste(photo, ((px - photo.width) // 2, (px - photo.height) // 2))
    return np.asarray(square)


def _distance_axis(axis: Axes) -> None:
    axis.set(xscale="log", xlim=(5.0, np.pi * EARTH_RADIUS_KM), xlabel="great-circle distance h, km")
    axis.xaxis.set_major_formatter(KILOMETRES)


class TabledCurve:
    """A fitted curve that is evaluated once and looked up afterwards (:class:`lib.method.Curve`), for pairs by the thousand."""

    def __init__(self, fitted: sv.FittedSemivariogram) -> None:
        self.table, self.range_km, self.nugget, self.sill = sv.Curve(fitted), fitted.range_km, fitted.nugget, fitted.sill

    def gamma(self, distance_rad: np.ndarray) -> np.ndarray:
        """gamma(h), any shape, radians."""
        return self.table.gamma(torch.tensor(distance_rad, dtype=torch.float32)).numpy()


def log_weights(frame: pd.DataFrame, curve: sv.Curve, rule: str, alpha: float, beta: float) -> np.ndarray:
    """log w [P] of the pairs of ``frame`` (distance_km, dissimilarity) by the strategy ``rule`` with ``curve``.

    The strategy sees one photo at 0° N 0° E, and P candidates along the equator whose unit features, of one dimension, make the
    pairs' dissimilarities.
    """
    east = np.rad2deg(km_to_rad(np.append(0.0, frame["distance_km"].to_numpy())))
    look = np.append(1.0, 1.0 - frame["dissimilarity"].to_numpy())
    places = torch.stack((torch.zeros(len(east), dtype=torch.float64), torch.tensor(east)), 1)
    unit = torch.tensor(look, dtype=torch.float32)[:, None]
    pairs = Pairs(torch.zeros(1, len(east)), unit, places, curve, alpha, beta)
    return negatives.get(rule).reweight(pairs).log_weight[0, 1:].numpy()


def stretched(
    shape: sv.FittedSemivariogram, nugget: float, sill: float, range_km: float
) -> sv.FittedSemivariogram:
    """The curve ``shape`` with another nugget and sill, stretched along the distance so that its range is ``range_km``."""
    factor = range_km / shape.range_km
    return replace(
        shape,
        nugget=nugget,
        partial_sill=max(sill - nugget, 1e-3),
        length_scale_rad=shape.length_scale_rad * factor,
        range_rad=range_km / EARTH_RADIUS_KM,
        range_km=range_km,
    )


class CurveScene(Scene):
    """A curve by hand: its fit to the lag means, the weights that follow from it, and pairs that it calls false or hard."""

    def __init__(self, run: Run, cloud: pd.DataFrame, empirical: sv.EmpiricalSemivariogram, fitted: sv.FittedSemivariogram):
        super().__init__((10.0, 6.6))
        kept = ["first", "second", "distance_km", "dissimilarity"]
        self.cloud = cloud.iloc[:: max(1, len(cloud) // MOST_PAIRS)][kept].reset_index(drop=True)
        self.paths, self.root = datasets.read(run)["path"], datasets.root_of(run)
        self.shapes = {fitted.family: fitted} | _other_families(empirical, fitted)
        own = run.settings.training.own("semivariogram")[1]
        self.controls = {
            "family": Choice("family", fitted.family, tuple(self.shapes)),
            "nugget": Slider("nugget", round(fitted.nugget, 3), 0.0, 1.0, 0.01),
            "sill": Slider("sill", round(fitted.sill, 3), 0.05, 1.5, 0.01),
            "range_km": Slider("range, km", fitted.range_km, 50.0, 20_000.0, is_log=True),
            "rule": Choice("strategy", "semivariogram", RULES),
            "alpha": Slider("alpha", own.alpha, 0.0, 8.0, 0.125),
            "beta": Slider("beta", own.beta, 0.0, 12.0, 0.25),
        }
        self.buttons = {"back to this family's fit": self._fit_of}
        with mpl.rc_context(STYLE):
            self._draw_ground(empirical)

    def _fit_of(self, values: dict[str, Any]) -> dict[str, Any]:
        shape = self.shapes[values["family"]]
        return {"nugget": shape.nugget, "sill": shape.sill, "range_km": shape.range_km}

    def _draw_ground(self, empirical: sv.EmpiricalSemivariogram) -> None:
        left = self.figure.add_axes([0.07, 0.56, 0.42, 0.40])
        right = self.figure.add_axes([0.57, 0.56, 0.42, 0.40])
        table = empirical.table()
        table = table[table["pairs"] >= 30]
        left.plot(table["lag_km"], table["gamma"], ".", ms=2.6, color=PALETTE[1], label="mean of the lag")
        left.set(ylim=(0.0, 1.5), ylabel="semivariance γ", title="curve")
        right.set(ylim=(-4.0, 8.0), ylabel="log weight of a negative", title="weights")
        right.axhline(0.0, color=INK, lw=0.8)
        grid = np.geomspace(5.0, np.pi * EARTH_RADIUS_KM, 300)
        (self.line,) = left.plot(grid, grid, color=INK, label="curve by hand")
        self.rests = [left.plot([5.0, 20_016.0], [0, 0], color=MUTED, ls="--", lw=0.9)[0] for _ in range(2)]
        self.switches = [axis.plot([1, 1], axis.get_ylim(), color=PALETTE[3], ls=":", lw=1.4)[0] for axis in (left, right)]
        shown = {"ls": "", "ms": 2.4, "alpha": 0.7, "mew": 0}
        self.dots = {kind: right.plot([], [], marker=KIND_MARKERS[kind], color=colour, label=kind, **shown)[0] for kind, colour in KIND_COLOURS.items()}  # fmt: skip
        left.legend(loc="upper left")
        right.legend(loc="upper left", markerscale=2.5, ncols=3)
        for axis in (left, right):
            _distance_axis(axis)
        below = self.figure.add_axes([0.02, 0.0, 0.97, 0.46])
        below.set_axis_off()
        self.mosaic = below.imshow(np.full((264, 952, 3), 255, np.uint8), aspect="auto", interpolation="nearest")
        below.set(xlim=(0, 952), ylim=(264, 0))
        self.words = [below.text(244 * column + 96, 132 * row + 100, "", ha="center", va="top", fontsize=8) for row in range(2) for column in range(4)]  # fmt: skip
        for row, kind in enumerate(self.dots):
            if kind != pairs.EASY:
                below.text(-4, 132 * row + 48, f"{kind}s", rotation=90, va="center", ha="center", fontsize=8.5, color=KIND_COLOURS[kind], fontweight="bold")  # fmt: skip
        self.moving = [self.line, *self.rests, *self.switches, *self.dots.values(), self.mosaic, *self.words]

    def move(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Curve, weights and example pairs at ``values``."""
        curve = TabledCurve(stretched(self.shapes[values["family"]], values["nugget"], values["sill"], values["range_km"]))
        seen = pairs.classify(self.cloud, curve)
        seen["log_weight"] = log_weights(seen, curve.table, values["rule"], values["alpha"], values["beta"])
        self.line.set_ydata(curve.gamma(self.line.get_xdata() / EARTH_RADIUS_KM))
        for line, level in zip(self.rests, (curve.nugget, curve.sill), strict=True):
            line.set_ydata([level, level])
        for line in self.switches:
            line.set_xdata([curve.range_km, curve.range_km])
        for kind, dots in self.dots.items():
            chosen = seen[seen["kind"] == kind]
            dots.set_data(chosen["distance_km"], chosen["log_weight"])
        self._show_pairs(seen, telling_rows(seen, curve.range_km))
        return {}

    def _show_pairs(self, seen: pd.DataFrame, rows: list[int | None]) -> None:
        """Two rows of four pairs, false negatives above hard ones, with what the curve says of each."""
        canvas = np.full((264, 952, 3), 255, np.uint8)
        for number, (word, row) in enumerate(zip(self.words, rows, strict=True)):
            word.set_text("")
            if row is None:
                continue
            pair, top, left = seen.iloc[row], 132 * (number // 4), 244 * (number % 4)
            canvas[top:, left:][:TILE_PX, :TILE_PX] = tile(self.root, self.paths.iloc[pair["first"]])
            canvas[top:, left + TILE_PX :][:TILE_PX, :TILE_PX] = tile(self.root, self.paths.iloc[pair["second"]])
            says = f"{pair['distance_km']:,.0f} km, d {pair['dissimilarity']:.2f}, expected {pair['gamma']:.2f}"
            word.set_text(f"{says}\nweight × {np.exp(pair['log_weight']):.2f}")
        self.mosaic.set_data(canvas)


def telling_rows(seen: pd.DataFrame, range_km: float, share: float = 0.02) -> list[int | None]:
    """Rows of ``seen`` for :func:`lib.evaluate.pairs.steps_of_distance`: each at random out of the ``share`` with the largest residuals.

    As :func:`lib.evaluate.pairs.examples` chooses, in NumPy, which takes a tenth of the time. None where a step has no such pair that is
    free; no photo is shown twice.
    """
    distance, residual, kind = (seen[name].to_numpy() for name in ("distance_km", "residual", "kind"))
    first, second = seen["first"].to_numpy(), seen["second"].to_numpy()
    generator, rows = np.random.default_rng(0), []
    free = np.ones(len(seen), bool)
    for wanted, low, high in pairs.steps_of_distance(range_km):
        rows.append(None)
        inside = np.flatnonzero(free & (kind == wanted) & (low <= distance) & (distance <= high))
        if len(inside):
            count = max(1, round(share * len(inside)))
            rows[-1] = int(generator.choice(inside[np.argpartition(-residual[inside], count - 1)[:count]]))
            shown = (first[rows[-1]], second[rows[-1]])
            free &= ~(np.isin(first, shown) | np.isin(second, shown))
    return rows


def _other_families(
    empirical: sv.EmpiricalSemivariogram, fitted: sv.FittedSemivariogram
) -> dict[str, sv.FittedSemivariogram]:
    """Fits of the other families, to about 150 lags so that they take no time; a family that cannot be fitted is left out."""
    coarse, found = empirical.coarsened(max(1, len(empirical.pairs) // 150)), {}
    for family in ("Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational"):
        if family != fitted.family:
            try:
                found[family] = sv.fit(coarse, family=family, metric=fitted.metric, weights=fitted.weights, range_rule=fitted.range_rule)
            except BundleError:
                continue
    return found


def curve(
    run: Run, cloud: pd.DataFrame, empirical: sv.EmpiricalSemivariogram, fitted: sv.FittedSemivariogram
) -> Explorer:
    """Sliders for family, nugget, sill, range, alpha and beta; curve, weights and example pairs follow.

    Args:
        cloud: of :func:`lib.evaluate.pairs.sample`.
    """
    return Explorer(CurveScene(run, cloud, empirical, fitted))


class LookAlikeScene(Scene):
    """A photo, and where on Earth the photos are that look most like it: false negatives, hard negatives, easy ones."""

    def __init__(self, run: Run, fitted: sv.FittedSemivariogram, most: int = MOST_PHOTOS) -> None:
        super().__init__((10.0, 4.9))
        manifest, self.root, self.fitted = datasets.read(run), datasets.root_of(run), fitted
        rows = datasets.manifest.rows_of(manifest, "train")
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
        rows = rows[np.argsort(manifest["latitude"].to_numpy()[rows], kind="stable")]  # from south to north
        self.unit = features.read(run, manifest).unit(rows)
        self.photos, self.places = manifest.iloc[rows], datasets.manifest.coordinates(manifest)[rows]
        self.controls = {
            "photo": Slider("photo, south to north", len(rows) // 2, 0, len(rows) - 1),
            "count": Slider("look-alikes", min(50, len(rows) - 1), 6, min(500, len(rows) - 1)),
        }
        self.buttons = {"another photo": lambda values: {"photo": (values["photo"] + 5_003) % len(self.photos)}}
        with mpl.rc_context(STYLE):
            self._draw_ground()

    def _draw_ground(self) -> None:
        axis = self.figure.add_axes([0.42, 0.10, 0.57, 0.86], projection="mollweide")
        _world(axis)
        shown = {"ls": "", "mew": 0.4, "mec": "white", "alpha": 0.9}
        self.dots = {kind: axis.plot([], [], marker=KIND_MARKERS[kind], color=colour, ms=6, label=kind, **shown)[0] for kind, colour in reversed(KIND_COLOURS.items())}  # fmt: skip
        (self.star,) = axis.plot([], [], "*", ms=15, color=INK, mec="white", label="the photo", ls="")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.14), ncols=4)
        self.said = self.figure.text(0.02, 0.965, "", va="top", fontsize=9.5, fontweight="bold")
        beside = self.figure.add_axes([0.02, 0.0, 0.36, 0.90])
        beside.set_axis_off()
        self.mosaic = beside.imshow(np.full((452, 360, 3), 255, np.uint8), aspect="auto", interpolation="nearest")
        beside.set(xlim=(0, 360), ylim=(452, 0))
        places = [(132 * column, 200 + 128 * row) for row in range(2) for column in range(3)]
        self.words = [beside.text(x, y + TILE_PX + 3, "", va="top", fontsize=7.5) for x, y in places]
        self.corners = places
        self.counts = beside.text(204, 12, "", va="top", fontsize=9)
        self.moving = [*self.dots.values(), self.star, self.said, self.mosaic, *self.words, self.counts]

    def nearest(self, photo: int, count: int) -> pd.DataFrame:
        """The ``count`` photos that look most like number ``photo``, most alike first: of :func:`lib.evaluate.pairs.classify`, with number."""
        dissimilarity = (1.0 - self.unit @ self.unit[photo]).numpy()
        dissimilarity[photo] = np.inf
        number = np.argpartition(dissimilarity, count - 1)[:count]
        number = number[np.argsort(dissimilarity[number], kind="stable")]
        distance = distance_km(self.places[photo], self.places[number])
        frame = pd.DataFrame({"number": number, "distance_km": distance, "dissimilarity": dissimilarity[number]})
        return pairs.classify(frame, self.fitted)

    def move(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The photo and its look-alikes at ``values``."""
        photo = values["photo"]
        found = self.nearest(photo, values["count"])
        place = self.places[photo]
        self.star.set_data(*(np.radians([one]) for one in place[::-1]))
        for kind, dots in self.dots.items():
            chosen = np.radians(self.places[found.loc[found["kind"] == kind, "number"]])
            dots.set_data(chosen[:, 1], chosen[:, 0])
        self.said.set_text(f"{self.photos['id'].iloc[photo]}: {_place_label(*place)}")
        canvas = np.full((452, 360, 3), 255, np.uint8)
        canvas[:192, :192] = tile(self.root, self.photos["path"].iloc[photo], 192)
        for word, (x, y), look in zip(self.words, self.corners, found.head(6).itertuples(), strict=False):
            canvas[y:, x:][:TILE_PX, :TILE_PX] = tile(self.root, self.photos["path"].iloc[look.number])
            word.set_text(f"{look.distance_km:,.0f} km, d {look.dissimilarity:.2f}\nexpected {look.gamma:.2f}")
            word.set_color(KIND_COLOURS[look.kind])
        self.mosaic.set_data(canvas)
        number = found["kind"].value_counts()
        self.counts.set_text("\n".join(f"{number.get(kind, 0)} {kind}s" for kind in KIND_COLOURS) + f"\n\nof the {len(found)}\nmost alike among\n{len(self.photos):,} photos")  # fmt: skip
        return {}


def look_alikes(run: Run, fitted: sv.FittedSemivariogram) -> Explorer:
    """A training photo by number, and its look-alikes among the training photos (at most ``MOST_PHOTOS``, drawn at random)."""
    return Explorer(LookAlikeScene(run, fitted))


ORDERS = ("most gained", "most lost", "as they come")


class DuelScene(Scene):
    """Two strategies' predictions for one photo, every seed: on the map, and among the errors of all photos of the split."""

    def __init__(self, run: Run, predictions: pd.DataFrame) -> None:
        super().__init__((10.0, 5.2))
        self.root, self.paths = datasets.root_of(run), datasets.read(run).set_index("id")["path"]
        self.frames = {key: _by_photo(frame) for key, frame in predictions.groupby(["split", "strategy"], sort=False)}
        splits, names = (tuple(dict.fromkeys(predictions[column])) for column in ("split", "strategy"))
        self.controls = {
            "split": Choice("split", splits[0], splits),
            "ours": Choice("strategy", names[-1] if len(names) == 1 else names[1], names),
            "theirs": Choice("against", names[0], names),
            "order": Choice("order", ORDERS[0], ORDERS),
            "position": Slider("photo", 0, 0, max(len(one.ids) for one in self.frames.values()) - 1),
        }
        with mpl.rc_context(STYLE):
            self._draw_ground()

    def _draw_ground(self) -> None:
        axis = self.figure.add_axes([0.37, 0.09, 0.62, 0.80], projection="mollweide")
        _world(axis)
        self.lines = [axis.plot([], [], lw=1.3)[0] for _ in range(2)]
        self.dots = [axis.plot([], [], mark, ms=7, mec="white", mew=0.5, ls="")[0] for mark in ("o", "^")]
        (self.truth,) = axis.plot([], [], "o", ms=15, mfc="none", mec=INK, mew=1.8, ls="")
        below = [axis.text(x, -0.09, "", transform=axis.transAxes, ha="center", va="top", fontweight="bold") for x in (0.25, 0.75)]
        self.captions = below
        self.said = self.figure.text(0.02, 0.975, "", va="top", fontsize=9.5)
        picture = self.figure.add_axes([0.015, 0.50, 0.20, 0.36])
        picture.set_axis_off()
        self.photo = picture.imshow(np.full((192, 192, 3), 255, np.uint8), interpolation="nearest")
        cloud = self.figure.add_axes([0.065, 0.10, 0.25, 0.36])
        cloud.set(xscale="log", yscale="log", xlim=(1.0, 21_000), ylim=(1.0, 21_000))
        cloud.plot([1, 21_000], [1, 21_000], color=MUTED, lw=0.9)
        cloud.tick_params(labelsize=7.5)
        (self.all,) = cloud.plot([], [], ".", ms=1.8, color="#94a3b8", ls="", rasterized=True)
        (self.one,) = cloud.plot([], [], "o", ms=8, mfc="none", mec=PALETTE[3], mew=1.8)
        self.axes_names = [
            cloud.text(0.97, 0.04, "", transform=cloud.transAxes, ha="right", fontsize=8),
            cloud.text(0.04, 0.96, "", transform=cloud.transAxes, va="top", fontsize=8),
        ]
        self.moving = [*self.lines, *self.dots, self.truth, *below, self.said, self.photo, self.all, self.one, *self.axes_names]

    def move(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The photo at ``values``: its true place, both strategies' predictions, its errors among all."""
        ours, theirs = (self.frames[values["split"], values[name]] for name in ("ours", "theirs"))
        gain = np.log(np.maximum(theirs.error, 1.0)) - np.log(np.maximum(ours.error, 1.0))
        order = {"most gained": np.argsort(-gain, kind="stable"), "most lost": np.argsort(gain, kind="stable")}
        number = order.get(values["order"], np.arange(len(gain)))[min(values["position"], len(gain) - 1)]
        place = ours.truth[number]
        self.truth.set_data(*(np.radians([one]) for one in place[::-1]))
        names = values["ours"], values["theirs"]
        for line, dots, caption, name, one in zip(self.lines, self.dots, self.captions, names, (ours, theirs), strict=True):
            found = one.predicted[:, number]
            colour = STRATEGY_COLOURS.get(name, PALETTE[0])
            path = np.radians(np.concatenate([_with_gap(piece) for end in found for piece in great_circle(place, end)]))
            line.set_data(path[:, 1], path[:, 0])
            dots.set_data(np.radians(found[:, 1]), np.radians(found[:, 0]))
            caption.set_text(f"{name}: {_errors(one.errors[:, number])}")
            for artist in (line, dots, caption):
                artist.set_color(colour)
        identity = ours.ids[number]
        self.said.set_text(f"{identity}, {_place_label(*place)}, ringed on the map; one mark a seed\n"
                           f"in {np.mean(gain > 0):.0%} of {len(gain):,} photos {names[0]} is nearer than {names[1]}, in {np.mean(gain < 0):.0%} farther (median over seeds)")  # fmt: skip
        self.photo.set_data(tile(self.root, self.paths[identity], 192))
        self.all.set_data(np.maximum(theirs.error, 1.0), np.maximum(ours.error, 1.0))
        self.one.set_data([max(theirs.error[number], 1.0)], [max(ours.error[number], 1.0)])
        for word, name in zip(self.axes_names, names[::-1], strict=True):
            word.set_text(f"error of {name}, km")
        return {}


@dataclass(frozen=True)
class _ByPhoto:
    """Predictions of one strategy on one split: ids [N], truth [N, 2], predicted [S, N, 2], errors [S, N], their median [N]."""

    ids: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    errors: np.ndarray
    error: np.ndarray


def _by_photo(frame: pd.DataFrame) -> _ByPhoto:
    frame = frame.sort_values(["seed", "id"], kind="stable")
    seeds = frame["seed"].nunique()
    columns = frame[["latitude", "longitude", "predicted_latitude", "predicted_longitude"]].to_numpy()
    parts = columns.reshape(seeds, -1, 4)
    errors = frame["error_km"].to_numpy().reshape(seeds, -1)
    ids = frame["id"].to_numpy().reshape(seeds, -1)[0]
    return _ByPhoto(ids, parts[0, :, :2], parts[:, :, 2:], errors, np.median(errors, 0))


def _with_gap(piece: np.ndarray) -> np.ndarray:
    return np.concatenate([piece, [[np.nan, np.nan]]])


def _errors(errors: np.ndarray) -> str:
    return ", ".join(f"{error:,.0f}" for error in np.sort(errors)) + " km"


def duel(run: Run, predictions: pd.DataFrame) -> Explorer:
    """Two strategies' predictions photo by photo; ordered by how much nearer one is (ratio of the errors, median over seeds).

    Args:
        predictions: of :func:`lib.evaluate.evaluation.evaluate`; every strategy on the same photos of a split.
    """
    return Explorer(DuelScene(run, predictions))
