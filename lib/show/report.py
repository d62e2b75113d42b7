"""What a reader opens first: results/<run>/index.html; and the comparison with the run that the repository
keeps.

The page is one file: figures are in it, nothing is fetched, and it runs no script. Beyond rounding it
computes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from lib.data import datasets
from lib.data.manifest import read_table
from lib.evaluate.evaluation import CONTROL
from lib.evaluate.intervals import HELD_OUT_KM, LEAST_PHOTOS, points
from lib.method.negatives import REGISTRY
from lib.runs import ArtefactError, Run, writing
from lib.runs.provenance import provenance_file
from lib.runs.run import REFERENCE
from lib.show.world import encoded
from lib.train.metrics import COLUMNS, COMPARED, HEADLINE
from lib.train.training import best_strategy

BASELINE = "infonce"
PAPERS_OWN = "semivariogram"
"""The strategy that puts the paper's two definitions, of false and of hard negatives, to work."""
HELD_OUT = "test_blocked"
"""Split of the held-out cells."""
LEAST_CHOSEN_BY = 30
"""With fewer validation photos strategies tie, and nothing is chosen."""
VERDICTS = ("gains", "not shown", "loses", "too few photos")

OF_CURVE = {"nugget": 0.005, "partial_sill": 0.005, "range_km": 0.02}
"""How far the curve may lie from the reference's, which no seed decides: absolute for cosine distances, a
share of the reference for kilometres."""
FALSE_ALARMS = 0.05
"""Of runs that differ from the reference only as other seeds do, the share of which a figure may be called
not reproduced."""
OF_REFERENCE = ["split", "strategy", "figure", "reference", "here", "tolerance", "reproduced"]
FIGURES = {
    "semivariogram": "The empirical semivariogram of the frozen features and the fitted model.",
    "margin": "How different photos look by distance, and by how much a wrong place must lose for it.",
    "pairs": "What the curve calls false negatives and hard negatives.",
    "differences": "Paired differences to infonce, with 95 % intervals over photos and seeds.",
    "differences_to_control": "The same against similarity, the control that looks without geography.",
    "training": "Loss and validation accuracy of every strategy.",
    "weights": "What each strategy does to its negatives.",
    "error_distribution": "How far off the predictions are.",
    "by_continent": "Accuracy by continent.",
    "by_latitude": "Accuracy by latitude.",
    "error_map": "Where on Earth the errors are.",
    "candidates": "Whole answers: where the model's probability lies for four test photos.",
    "pair_cloud": "Every sampled pair, and the three kinds of negative.",
    "places": "Places by split.",
    "photos": "What the photos look like.",
    "density": "How densely the places lie, and how far they are from the training places.",
    "baseline_training": "Training of the baseline.",
    "factor_effect": "Why multiplying logits is not weighting.",
}

MAPS = {
    "gain_cells": ("Where it helps", "Gain of each strategy by equal-area cell; grey where it is not shown."),
    "side_by_side": ("Two strategies side by side", "Two maps that move together; a photo opens on both."),
    "error_cells": ("How far off", "Mean and median error by equal-area cell."),
    "predictions": ("Every photo", "True and predicted place, clusters, heat of error, search by id."),
    "predictions_test_blocked": ("Every held-out photo", "The same for cells held out whole."),
    "candidates": ("Whole answers", "Candidates and probability of a few photos."),
}
"""Title and description of each map."""
SPLITS = {
    ("blue_marble", "test"): "places drawn as the training photos\u2019 are",
    ("osv5m", "test"): "the official test split",
    ("blue_marble", "test_blocked"): "in cells held out whole",
}
"""What a split of a data set is."""
DATA = {
    "blue_marble": "satellite windows of NASA\u2019s Blue Marble",
    "osv5m": "OpenStreetView-5M, street photos",
    "folder": "a folder of photos",
}
"""What a reader calls a data set."""
PAPER = {"GeoCLIP": ["19.8", "50.1", "–"], "GeoCLIP with the semivariogram": ["21.5", "52.1", "72.1"]}
PAPER_METRICS = ("acc_25km", "acc_200km", "acc_750km")
"""Percent of the photos of OSV5M's test split within 25, 200 and 750 km. Source: arXiv 2509.21573."""
PICTURE_PX = 1_800
"""Width of a figure on the page: sharp on a dense screen, a fifth of the PNG's bytes."""


# ---- the kept reference


def compare_with_reference(run: Run) -> tuple[pd.DataFrame, str]:
    """Each figure of ``run`` beside the reference's, and a sentence that says what the comparison came to.

    Returns:
        split, strategy, figure, reference, here, tolerance, reproduced; empty where there is nothing to
        compare with, and the sentence says why.
    """
    folder, empty = REFERENCE / run.settings.profile, pd.DataFrame(columns=OF_REFERENCE)
    if not provenance_file(folder).is_file():
        return empty, f"No reference run is kept for profile {run.settings.profile}."
    if differing := _differing_settings(run, folder):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return (
            empty,
            f"Not compared with the reference run: other settings ({', '.join(differing[:3])}{more}).",
        )
    table = _beside(run, folder)
    good = int(table["reproduced"].sum())
    return (
        table,
        f"{good} of {len(table)} figures of the reference run are reproduced within their tolerance.",
    )


def _differing_settings(run: Run, folder: Path) -> list[str]:
    """Names of the settings, but for places of files and devices, in which ``run`` and reference differ."""
    kept = json.loads(provenance_file(folder).read_text(encoding="utf-8"))["settings"]
    here = run.settings.model_dump(mode="json")
    then, now = (pd.json_normalize(settings).iloc[0].to_dict() for settings in (kept, here))
    ignored = {"device", "deterministic", "dataset.root", "backbone.workers"}
    return [name for name in sorted({*then, *now} - ignored) if then.get(name) != now.get(name)]


def _beside(run: Run, folder: Path) -> pd.DataFrame:
    """The fitted curve, accuracies and their paired differences: reference, here, tolerance, reproduced.

    A training on another processor rounds differently and may end as another seed would. So the mean over S
    seeds may differ by t sd sqrt(2 / S): sd is the reference's spread over seeds, pooled over the strategies
    of a split, t Student's quantile for ``FALSE_ALARMS`` among all figures (Bonferroni).
    """
    fits = [json.loads(path.read_text()) for path in (folder / "semivariogram.json", run.semivariogram)]
    curve = [("train", "semivariogram fit", name, fits[0][name], fits[1][name]) for name in OF_CURVE]
    curve = pd.DataFrame(curve, columns=OF_REFERENCE[:5])
    tolerance = curve["figure"].map(OF_CURVE)
    curve["tolerance"] = tolerance * curve["reference"].where(curve["figure"] == "range_km", 1.0)

    keys, paths = ["split", "strategy", "seed"], (folder / "tables" / "accuracy.csv", run.table("accuracy"))
    tables = [pd.read_csv(path).set_index(keys)[COLUMNS] for path in paths]
    found = []
    for split in tables[0].index.unique("split"):
        then, now = (
            one.xs(split) if split in one.index.unique("split") else one.iloc[:0].droplevel(0)
            for one in tables
        )
        names = [name for name in then.index.unique("strategy") if name in now.index.unique("strategy")]
        levels = {name: (then.loc[name], now.loc[name]) for name in names}
        found.append(_within(split, levels, len(then.index.unique("seed"))))
        if BASELINE in levels:
            pairs = {
                f"{name}-{BASELINE}": tuple(
                    ours - base for ours, base in zip(both, levels[BASELINE], strict=True)
                )
                for name, both in levels.items()
                if name != BASELINE
            }
            found.append(_within(split, pairs, len(then.index.unique("seed"))))
    table = pd.concat(found, ignore_index=True)
    table = table[table["spread"] > 0.0]  # a figure that no seed moves, such as nought everywhere
    quantile = stats.t.ppf(1.0 - FALSE_ALARMS / 2.0 / max(1, len(table)), table.pop("freedom"))
    table["tolerance"] = quantile * table.pop("spread")
    table = pd.concat([curve, table], ignore_index=True)
    table["reproduced"] = (table["here"] - table["reference"]).abs() <= table["tolerance"]
    return table[OF_REFERENCE]


def _within(split: str, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]], seeds: int) -> pd.DataFrame:
    """Means over seeds of reference and run, the standard error of their difference, its degrees of freedom.

    Args:
        found: name -> the figures by seed of the reference, and those of the run.
    """
    variance = sum(then.var() for then, _ in found.values()) / max(1, len(found))
    spread, rows = np.sqrt(2.0 * variance / seeds), []
    for name, (then, now) in found.items():
        both = pd.DataFrame({"reference": then.mean(), "here": now.mean(), "spread": spread})
        rows.append(both.rename_axis("figure").reset_index().assign(split=split, strategy=name))
    if not rows:
        return pd.DataFrame(columns=[*OF_REFERENCE[:5], "spread", "freedom"])
    return pd.concat(rows).assign(freedom=len(found) * (seeds - 1))


def format_comparison(table: pd.DataFrame, sentence: str) -> str:
    """The comparison as text for a terminal."""
    if table.empty:
        return sentence
    head = "{:13}{:31}{:14}{:>11}{:>11}{:>11}  {}"
    lines = [head.format(*OF_REFERENCE)]
    for row in table.itertuples(index=False):
        numbers = (f"{value:.4g}" for value in (row.reference, row.here, row.tolerance))
        lines.append(head.format(*row[:3], *numbers, "yes" if row.reproduced else "NO"))
    return "\n".join([*lines, sentence])


# ---- the page


def write_index(run: Run, provenance: dict[str, Any], notebooks: list[dict[str, str]]) -> Path:
    """Write results/<run>/index.html: all in one page but maps, notebooks and tables, to which it links.

    Args:
        notebooks: title, ipynb and html (relative links) of each executed notebook.
    """
    reference, sentence = pd.DataFrame(), ""
    if run.table("accuracy").exists():
        reference, sentence = compare_with_reference(run)
    comparison, intervals, by_continent, gain_cells, bounds = (
        _table(run, f) for f in ("comparison", "intervals", "gain_by_continent", "gain_cells", "bounds")
    )
    lead, dataset = _lead(run), provenance["settings"]["dataset"]["name"]
    screen = first_screen(lead, comparison, by_continent, gain_cells)
    charts = {"By strategy": screen["strategies"], f"{lead}, by continent": screen["continents"]}
    figures = [(name, text) for name, text in FIGURES.items() if run.figure(name).exists()]
    parts = {
        "screen": screen,
        "charts": [_chart(title, rows) for title, rows in charts.items()],
        "accuracy": accuracy_tables(intervals, bounds),
        "differences": difference_tables(
            _only(comparison, COMPARED), ["split", "baseline"], "strategy", "metric"
        ),
        "continents": difference_tables(
            _only(by_continent[by_continent["split"] == screen["split"]], [HEADLINE]),
            ["split"],
            "continent",
            "strategy",
        )
        if len(by_continent)
        else [],
        "has_control": screen.get("control") is not None,
        "chosen_by": _validation_photos(run),
        "least_chosen_by": LEAST_CHOSEN_BY,
        "splits": {split: text for (name, split), text in SPLITS.items() if name == dataset},
        "fit": json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        "figures": [(name, text, _picture(run.figure(name))) for name, text in figures],
        "maps": _maps(run),
        "tables": sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        "provenance_file": run.provenance.name,
        "settings": provenance["settings"],
        "data": DATA.get(dataset, dataset),
        "paper": beside_the_paper(intervals),
        "reference": reference.to_dict("records"),
        "reference_sentence": sentence,
    }
    told = {"run": run, "provenance": provenance, "notebooks": notebooks, "least_photos": LEAST_PHOTOS}
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    strict = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=folder, autoescape=True, **strict)
    page = environment.get_template("index.html.j2").render(**parts, **told, points=points, heading=_heading)
    path = run.folder / "index.html"
    with writing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _table(run: Run, name: str) -> pd.DataFrame:
    """The run's table ``name``; empty where it has not been made, or where there was nothing to put in it."""
    path = run.table(name)
    return read_table(path) if path.exists() else pd.DataFrame()


def _only(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows of ``metrics``, in their order."""
    return pd.concat([table[table["metric"] == metric] for metric in metrics]) if len(table) else table


def _lead(run: Run) -> str:
    """The strategy that the validation split chooses; "" before every strategy has been trained."""
    try:
        return best_strategy(run)[0]
    except ArtefactError:
        return ""


def _validation_photos(run: Run) -> int:
    """How many photos chose the lead."""
    return int((datasets.read(run, ["split"])["split"] == "validation").sum()) if run.manifest.exists() else 0


def _maps(run: Run) -> list[tuple[str, str, str]]:
    """File, title and description of each map, those that answer the question first."""
    there = sorted(path.stem for path in (run.folder / "maps").glob("*.html"))
    order = sorted(there, key=lambda name: [*MAPS, name].index(name))
    return [(f"{name}.html", *MAPS.get(name, (name.replace("_", " "), "Map"))) for name in order]


def _picture(path: Path) -> dict[str, Any]:
    """The figure at ``path`` for the page itself: WebP in base64 and its size in pixels."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    if small.width > PICTURE_PX:
        size = (PICTURE_PX, round(small.height * PICTURE_PX / small.width))
        small = small.resize(size, Image.Resampling.LANCZOS)
    return {
        "data": encoded(small, "WEBP", quality=84, method=4),
        "width": small.width,
        "height": small.height,
    }


# ---- the first screen


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
        return "loses" if self.high < 0 else "not shown"

    @property
    def uses_curve(self) -> bool:
        """Whether this is a strategy that uses the semivariogram."""
        return self.label not in REGISTRY or REGISTRY[self.label].needs_curve


def _rows(table: pd.DataFrame, label: str) -> list[Row]:
    """Differences in ``table``, named by the column ``label``; with corrected intervals if there are any."""
    prefix = "corrected" if "corrected_low" in table else "ci"
    numbers = 100 * table[["difference", f"{prefix}_low", f"{prefix}_high"]].to_numpy()
    return [Row(*one) for one in zip(table[label], table["n"], *numbers.T, strict=True)]


def first_screen(
    lead: str, comparison: pd.DataFrame, by_continent: pd.DataFrame, gain_cells: pd.DataFrame
) -> dict[str, Any]:
    """The numbers of the first screen, on the first split and within 200 km.

    Args:
        lead: the strategy that validation chose, which need not be the best on the split.
        comparison: of :func:`lib.evaluate.intervals.compare`.
        by_continent: of :func:`lib.evaluate.regions.continent_gains`.
        gain_cells: of :func:`lib.evaluate.regions.cell_gains`. Each of the three may be empty.

    Returns:
        ``lead``; ``split``; ``strategies``, the rows of all; ``own`` and ``control``, the rows of the paper's
        strategy and of the control; of the lead: ``found``, its row, ``held_out``, its row on the cells held
        out whole, ``continents``, its rows, ``comparisons``, their number, and ``cells``, by side in km.
    """
    screen = {"lead": lead, "split": "", "strategies": [], "found": None, "continents": [], "cells": {}}
    if comparison.empty:
        return screen
    split = comparison["split"].iloc[0]
    strategies = strategy_rows(comparison, split)
    by_label = {row.label: row for row in strategies}
    far = f"acc_{HELD_OUT_KM}km"
    held_out = strategy_rows(comparison, HELD_OUT, far) if split != HELD_OUT else []
    screen |= {
        "split": split,
        "strategies": strategies,
        "found": by_label.get(lead),
        "held_out_km": HELD_OUT_KM,
        "held_out": {row.label: row for row in held_out}.get(lead),
        "own": by_label.get(PAPERS_OWN),
        "control": by_label.get(CONTROL),
        "comparisons": 0,
    }
    of_lead = f"strategy == {lead!r} and split == {split!r} and metric == {HEADLINE!r}"
    if len(by_continent):
        continents = by_continent.query(of_lead).sort_values("difference", ascending=False)
        screen["continents"] = _rows(continents, "continent")
        screen["comparisons"] = int(continents["comparisons"].max()) if len(continents) else 0
    if len(gain_cells):
        counted = gain_cells.query(of_lead).groupby(["side_km", "verdict"], sort=False).size()
        screen["cells"] = counted.unstack(fill_value=0).to_dict("index")
    return screen


def strategy_rows(comparison: pd.DataFrame, split: str, metric: str = HEADLINE) -> list[Row]:
    """Each strategy against the baseline by ``metric`` on ``split``: what gains first, the larger first."""
    against = comparison[(comparison["split"] == split) & (comparison["baseline"] == BASELINE)]
    rows = _rows(against[against["metric"] == metric], "strategy")
    return sorted(rows, key=lambda row: (VERDICTS.index(row.verdict), -row.difference))


def _chart(title: str, rows: list[Row]) -> dict[str, Any]:
    """Rows with dot and interval as percent of one scale that holds zero and every interval; its ticks."""
    ends = [value for row in rows for value in row[2:] if math.isfinite(value)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = next((one for one in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / one <= 6), 100)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)

    def place(value: float) -> float:
        return round(100.0 * (value / step - first) / (last - first), 2)

    drawn = []
    for row in rows:
        places = [place(value) if math.isfinite(row.low) else None for value in row[2:]]
        drawn.append({"row": row} | dict(zip(("dot", "left", "right"), places, strict=True)))
    names = [f"{step * k:+g}".replace("-", "\u2212") if k else "0" for k in range(first, last + 1)]
    ticks = [(place(step * k), name) for k, name in enumerate(names, first)]
    return {"title": title, "rows": drawn, "ticks": ticks, "zero": place(0.0)}


# ---- tables for reading


def accuracy_tables(intervals: pd.DataFrame, bounds: pd.DataFrame) -> list[dict[str, Any]]:
    """The accuracy table: one entry a split, with its rows; values with their 95 % intervals as text.

    Args:
        intervals: of :func:`lib.evaluate.intervals.levels`.
        bounds: rows ceiling and chance, without intervals.
    """
    if intervals.empty:
        return []
    metrics = intervals["metric"].unique().tolist()
    limits = bounds.melt(["split", "strategy"], metrics, "metric") if len(bounds) else bounds
    entries = []
    for split in intervals["split"].unique():
        rows = []
        for table, is_bound in ((intervals, False), (limits, True)):
            of_split = table[table["split"] == split] if len(table) else pd.DataFrame(columns=["strategy"])
            for strategy, frame in of_split.groupby("strategy", sort=False):
                found = frame.set_index("metric").reindex(metrics, columns=["value", "ci_low", "ci_high"])
                texts = [[_amount(metric, value) for value in row] for metric, *row in found.itertuples()]
                cells = [(value, "" if is_bound else f"{low}–{high}") for value, low, high in texts]
                rows.append({"strategy": strategy, "cells": cells, "is_bound": is_bound})
        entries.append({"split": split, "metrics": [_heading(metric) for metric in metrics], "rows": rows})
    return entries


def _amount(metric: str, value: float) -> str:
    return points(100 * value, sign=False) if metric.startswith("acc_") else f"{value:,.0f}"


def _heading(metric: str) -> str:
    return f"{int(metric[4:-2]):,} km" if metric.startswith("acc_") else metric.replace("_km", ", km")


def difference_tables(table: pd.DataFrame, by: list[str], row: str, column: str) -> list[dict[str, Any]]:
    """Differences for reading: one entry for each value of ``by``; ``row`` and ``column`` name the others."""
    entries = []
    for key, frame in table.groupby(by, sort=False) if len(table) else []:
        rows = [
            {
                "name": name,
                "photos": of_row["n"].max(),
                "cells": {one.label: one for one in _rows(of_row, column)},
            }
            for name, of_row in frame.groupby(row, sort=False)
        ]
        comparisons = int(frame["comparisons"].max()) if "comparisons" in frame else 0
        entries.append(
            {"key": key, "columns": frame[column].unique(), "rows": rows, "comparisons": comparisons}
        )
    return entries


def beside_the_paper(intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Percent of the photos by the paper's table and by the same two strategies of this run; may be empty."""
    if intervals.empty:
        return []
    split = intervals["split"].iloc[0]
    rows = [{"source": "paper, OSV5M", "strategy": name, "cells": cells} for name, cells in PAPER.items()]
    for name in (BASELINE, PAPERS_OWN):
        found = intervals[(intervals["split"] == split) & (intervals["strategy"] == name)].set_index("metric")
        if len(found):
            cells = [_amount(metric, found.loc[metric, "value"]) for metric in PAPER_METRICS]
            rows.append({"source": f"this run, {split}", "strategy": name, "cells": cells})
    return rows
