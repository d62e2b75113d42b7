"""The page that a reader opens first: results/<run>/index.html.

The page runs no script and fetches nothing from a network. Its figures, maps and tables are files of the same
folder, which it names relative to itself, so the folder may be moved. It computes nothing but rounding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from lib.data import features
from lib.data.manifest import read_table
from lib.evaluate.evaluation import CONTROL
from lib.evaluate.intervals import BASELINE, HELD_OUT_KM, LEAST_PHOTOS, points
from lib.method.errors import BundleError
from lib.method.negatives import REGISTRY
from lib.runs import Run, cache, writing
from lib.show.reference import compare_with_reference
from lib.train.metrics import COMPARED, HEADLINE
from lib.train.training import best_strategy

PAPER = "semivariogram"
"""The strategy that puts the paper's two definitions, of false and of hard negatives, to work."""
HELD_OUT_SPLIT = "test_blocked"
LEAST_VALIDATION_PHOTOS = 30
"""With fewer validation photos strategies tie, and nothing is chosen."""
VERDICTS = ("gains", "unclear", "loses", "too few photos")
FIGURES = {
    "differences": "Paired differences to infonce, with 95 % intervals over photos and seeds.",
    "differences_to_control": "The same against similarity, the control that looks without geography.",
    "semivariogram": "The empirical semivariogram of the frozen features and the fitted model.",
    "margin": "How different photos look by distance, and by how much a wrong place must lose for it.",
    "pairs": "What the curve calls false negatives and hard negatives.",
    "training": "Loss and validation accuracy of every strategy.",
    "error_distribution": "How far off the predictions are.",
    "by_continent": "Accuracy by continent.",
    "candidates": "Whole answers: where the model's probability lies for four test photos.",
    "pair_cloud": "Sampled pairs, the curve, and the three kinds of negative.",
    "places": "Places by split.",
    "photos": "What the photos look like.",
    "baseline_training": "Training of the baseline.",
}
MAPS = {
    "predictions": ("Every photo", "True and predicted place, clusters, heat of error, search by id."),
    "predictions_test_blocked": ("Every held-out photo", "The same for cells held out whole."),
    "candidates": ("Whole answers", "Candidates and probability of a few photos."),
}
"""Title and description of each map."""
DATA = {
    "blue_marble": "satellite windows of NASA\u2019s Blue Marble",
    "osv5m": "OpenStreetView-5M, street photos",
    "folder": "a folder of photos",
}
"""What a reader calls a data set."""


def write_index(run: Run, provenance: dict[str, Any], notebooks: list[dict[str, str]]) -> Path:
    """Write results/<run>/index.html, which links to figures, maps, notebooks and tables.

    Args:
        notebooks: title, ipynb and html (relative links) of each executed notebook.
    """
    reference, sentence = pd.DataFrame(), ""
    if run.table("accuracy").exists():
        reference, sentence = compare_with_reference(run)
    names = ("comparison", "intervals", "gain_by_continent", "bounds")
    comparison, intervals, by_continent, bounds = (_table(run, name) for name in names)
    dataset = provenance["settings"]["dataset"]["name"]
    screen = first_screen(_chosen(run), comparison, by_continent)
    parts = {
        "screen": screen,
        "accuracy": accuracy_tables(intervals, bounds),
        "differences": difference_tables(comparison, ["split", "baseline"], "strategy", "metric"),
        "continents": difference_tables(
            _only(by_continent, "split", screen["split"]), ["split"], "continent", "strategy"
        ),
        "validation_photos": _validation_photos(run),
        "least_validation_photos": LEAST_VALIDATION_PHOTOS,
        "fit": json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        "figures": _figures(run),
        "maps": [(name, *words) for name, words in MAPS.items() if run.map(name).exists()],
        "tables": sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        "provenance_file": run.provenance.name,
        "settings": provenance["settings"],
        "data": DATA.get(dataset, dataset),
        "reference": reference.to_dict("records"),
        "reference_sentence": sentence,
    }
    told = {"run": run, "provenance": provenance, "notebooks": notebooks, "least_photos": LEAST_PHOTOS}
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    strict = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=folder, autoescape=True, **strict)
    page = environment.get_template("index.html.j2").render(**parts, **told, heading=_heading)
    path = run.folder / "index.html"
    with writing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _table(run: Run, name: str) -> pd.DataFrame:
    """The run's table ``name``; empty where it has not been made, or where there was nothing to put in it."""
    path = run.table(name)
    return read_table(path) if path.exists() else pd.DataFrame()


def _only(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows of ``table`` whose ``column`` is ``value``; an empty table has no columns and stays empty."""
    return table[table[column] == value] if len(table) else table


def _chosen(run: Run) -> str:
    """The strategy that the validation split chooses; "" before every strategy has been trained."""
    try:
        with cache.as_finished():
            return best_strategy(run)[0]
    except BundleError:
        return ""


def _validation_photos(run: Run) -> int:
    """How many validation photos chose the strategy."""
    try:
        with cache.as_finished():
            return int((features.photos(run, ["split"])["split"] == "validation").sum())
    except BundleError:
        return 0


def _figures(run: Run) -> list[dict[str, Any]]:
    """Name, caption, width and height in pixels of each figure that the run has."""
    found = []
    for name, caption in FIGURES.items():
        if run.figure(name).exists():
            with Image.open(run.figure(name)) as image:
                found.append({"name": name, "caption": caption, "width": image.width, "height": image.height})
    return found


class Row(NamedTuple):
    """A difference in percentage points of so many ``photos``, and its interval: NaN for too few photos."""

    label: str
    photos: int
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        if not math.isfinite(self.low):
            return "too few photos"
        if self.low > 0:
            return "gains"
        return "loses" if self.high < 0 else "unclear"

    @property
    def words(self) -> str:
        """Verdict, difference and interval as text, such as ``unclear: +9.0, −1.6 to +19.5``."""
        if self.verdict == "too few photos":
            return self.verdict
        if self.low == self.high == 0.0:
            return "unclear: no photo differs"
        named = {"gains": "a gain", "loses": "a loss"}.get(self.verdict, self.verdict)
        return f"{named}: {points(self.difference)}, {points(self.low)} to {points(self.high)}"

    @property
    def uses_curve(self) -> bool:
        """Whether this is a strategy that uses the semivariogram."""
        return self.label not in REGISTRY or REGISTRY[self.label].needs_curve


def _rows(table: pd.DataFrame, label: str) -> list[Row]:
    """Differences in ``table``, named by the column ``label``; with corrected intervals if there are any."""
    prefix = "corrected" if "corrected_low" in table else "ci"
    numbers = 100 * table[["difference", f"{prefix}_low", f"{prefix}_high"]].to_numpy()
    return [Row(*one) for one in zip(table[label], table["n"], *numbers.T, strict=True)]


def first_screen(chosen: str, comparison: pd.DataFrame, by_continent: pd.DataFrame) -> dict[str, Any]:
    """The numbers of the first screen, on the first split and within 200 km.

    Args:
        chosen: the strategy that validation chose, which need not be the best on the split.
        comparison: of :func:`lib.evaluate.intervals.compare`; may be empty.
        by_continent: of :func:`lib.evaluate.regions.continent_gains`; may be empty.

    Returns:
        ``chosen``; ``split``; ``strategies``, the rows of all; ``paper`` and ``control``, the rows of the
        paper's strategy and of the control; of the chosen one: ``found``, its row, ``held_out``, its row on
        the cells held out whole, and ``continents``, its rows.
    """
    screen = {"chosen": chosen, "split": "", "strategies": [], "found": None, "control": None}
    if comparison.empty:
        return screen
    split = comparison["split"].iloc[0]
    by_label = {row.label: row for row in strategy_rows(comparison, split)}
    held_out = strategy_rows(comparison, HELD_OUT_SPLIT, f"acc_{HELD_OUT_KM}km")
    of_chosen = _only(_only(_only(by_continent, "strategy", chosen), "split", split), "metric", HEADLINE)
    if len(of_chosen):
        of_chosen = of_chosen.sort_values("difference", ascending=False)
    return screen | {
        "split": split,
        "strategies": list(by_label.values()),
        "found": by_label.get(chosen),
        "held_out_km": HELD_OUT_KM,
        "held_out": {row.label: row for row in held_out if split != HELD_OUT_SPLIT}.get(chosen),
        "paper": by_label.get(PAPER),
        "control": by_label.get(CONTROL),
        "continents": _rows(of_chosen, "continent") if len(of_chosen) else [],
    }


def strategy_rows(comparison: pd.DataFrame, split: str, metric: str = HEADLINE) -> list[Row]:
    """Each strategy against the baseline by ``metric`` on ``split``: what gains first, the larger first."""
    against = comparison[(comparison["split"] == split) & (comparison["baseline"] == BASELINE)]
    rows = _rows(against[against["metric"] == metric], "strategy")
    return sorted(rows, key=lambda row: (VERDICTS.index(row.verdict), -row.difference))


def accuracy_tables(intervals: pd.DataFrame, bounds: pd.DataFrame) -> list[dict[str, Any]]:
    """The accuracy table: one entry a split, with its rows; values with their 95 % intervals as text.

    Args:
        intervals: of :func:`lib.evaluate.intervals.levels`; may be empty.
        bounds: rows ceiling and chance, without intervals.
    """
    entries = []
    for split, levels in intervals.groupby("split", sort=False) if len(intervals) else []:
        metrics, rows = levels["metric"].unique().tolist(), []
        for strategy, frame in levels.groupby("strategy", sort=False):
            numbers = frame.set_index("metric").loc[metrics, ["value", "ci_low", "ci_high"]]
            texts = [[_amount(metric, value) for value in row] for metric, *row in numbers.itertuples()]
            cells = [(value, f"{low}–{high}") for value, low, high in texts]
            rows.append({"strategy": strategy, "cells": cells, "is_bound": False})
        for _, bound in _only(bounds, "split", split).iterrows():
            cells = [(_amount(metric, bound[metric]), "") for metric in metrics]
            rows.append({"strategy": bound["strategy"], "cells": cells, "is_bound": True})
        entries.append({"split": split, "metrics": metrics, "rows": rows})
    return entries


def _amount(metric: str, value: float) -> str:
    return points(100 * value, sign=False) if metric.startswith("acc_") else f"{value:,.0f}"


def _heading(metric: str) -> str:
    return f"{int(metric[4:-2]):,} km" if metric.startswith("acc_") else metric.replace("_km", ", km")


def difference_tables(table: pd.DataFrame, by: list[str], row: str, column: str) -> list[dict[str, Any]]:
    """Differences for reading: one entry for each value of ``by``; ``row`` and ``column`` name the others.

    A table by strategy and metric has the accuracies that strategies are compared by. Any other has the one
    within 200 km.
    """
    entries = []
    metrics = COMPARED if column == "metric" else (HEADLINE,)
    shown = pd.concat([_only(table, "metric", metric) for metric in metrics])
    for key, frame in shown.groupby(by, sort=False) if len(shown) else []:
        rows = []
        for name, of_row in frame.groupby(row, sort=False):
            cells = {one.label: one for one in _rows(of_row, column)}
            rows.append({"name": name, "photos": of_row["n"].max(), "cells": cells})
        comparisons = int(frame["comparisons"].max()) if "comparisons" in frame else 0
        columns = frame[column].unique()
        entries.append({"key": key, "columns": columns, "rows": rows, "comparisons": comparisons})
    return entries
