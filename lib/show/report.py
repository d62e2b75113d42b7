"""What a reader opens first: results/<run>/index.html; and the comparison with the run that the repository
keeps.

The page is one file: figures are in it, nothing is fetched, and it runs no script. Beyond rounding it
computes nothing.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image
from pydantic import ValidationError

from lib.data.manifest import read_table
from lib.evaluate.evaluation import CONTROL
from lib.evaluate.intervals import LEAST_PHOTOS
from lib.method.negatives import REGISTRY, RENAMED
from lib.runs import RESULTS, ArtefactError, Run, writing
from lib.runs.provenance import provenance_file
from lib.settings import Settings
from lib.train.metrics import COLUMNS, COMPARED, HEADLINE
from lib.train.training import best_strategy

BASELINE = "infonce"
PAPERS_OWN = "semivariogram"
"""The strategy that puts the paper's two definitions, of false and of hard negatives, to work."""
HELD_OUT = "test_blocked"
VERDICTS = ("gains", "not shown", "loses", "too few photos")

REFERENCE = RESULTS / "reference"
"""Tables, figures and provenance of a run of ours, kept in git."""
SETTINGS_GONE = {"queue_embeddings": "renewed", "sampling": "random", "refit_every": 0, "trace_curve": False}
"""Settings of training that an earlier version had, with the values that stand for what every training does
now."""

TOLERANCES: dict[str, float] = {
    **{name: 0.02 for name in COLUMNS if name.startswith("acc_")},
    "median_km": 0.10,
    "mean_km": 0.10,
    "geoscore": 0.02,
    "nugget": 0.02,
    "partial_sill": 0.03,
    "range_km": 0.15,
}
"""How far a figure may lie from the reference's: absolute for fractions and cosine distances, a share of the
reference for kilometres and GeoScore. Wider than the seeds' spread: processors round differently, and
bfloat16 is used where it is native."""
RELATIVE = {"median_km", "mean_km", "geoscore", "range_km"}
FIGURES = {
    "semivariogram": "The empirical semivariogram of the frozen features and the fitted model.",
    "pairs": "What the curve calls false negatives and hard negatives.",
    "differences": "Paired differences to infonce, with 95 % intervals over photos and seeds.",
    "differences_to_control": "The same against similarity, the control that looks without geography.",
    "ablations": "Every strategy, peer and control against infonce, corrected for the number of comparisons.",
    "sweep_density": "Gain by density of the training photos and batch size, on validation.",
    "sweep_length": "Gain by length of training, on validation.",
    "sweep_worlds": "Gain by noise and backbone, on validation.",
    "sweep_queue": "Gain by the queue of earlier places, on validation.",
    "semivariogram_bands": "The curve, bands from resampled places, every family, the range by each rule.",
    "learned_semivariogram": "The semivariogram of the learned embeddings.",
    "simulation_curve": "A simulated world: the known semivariogram and its estimate.",
    "simulation_precision_recall": "A simulated world: who finds false and hard negatives.",
    "simulation_gains": "A simulated world: what each strategy and a perfect oracle gain.",
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
    ("blue_marble", "test_blocked"): "in 10-degree cells held out whole",
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
    folder = REFERENCE / run.settings.profile
    empty = pd.DataFrame(
        columns=["split", "strategy", "figure", "reference", "here", "tolerance", "reproduced"]
    )
    if not provenance_file(folder).is_file():
        return empty, f"No reference run is kept for profile {run.settings.profile}."
    if differing := _differing_settings(run, folder):
        return empty, f"Not compared with the reference run: other settings ({', '.join(differing)})."
    rows = [*_semivariogram_rows(run, folder), *_accuracy_rows(run, folder), *_difference_rows(run, folder)]
    table = pd.DataFrame(rows, columns=empty.columns)
    good = int(table["reproduced"].sum())
    return (
        table,
        f"{good} of {len(table)} figures of the reference run are reproduced within their tolerance.",
    )


def _kept(path: Path) -> io.StringIO:
    """The text of a kept file, with the strategies' earlier names replaced by those of today."""
    text = path.read_text()
    for old, new in RENAMED.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return io.StringIO(text)


def _differing_settings(run: Run, folder: Path) -> list[str]:
    """Names of the settings, other than places of files and devices, in which ``run`` and the reference
    differ."""
    reference = _complete(json.load(_kept(provenance_file(folder)))["settings"])
    here = json.loads(run.settings.model_dump_json())
    ignored = {"device", "deterministic", "dataset.root", "backbone.workers"}
    then, now = (_flat(settings) for settings in (reference, here))
    return [name for name in sorted({*then, *now} - ignored) if then.get(name) != now.get(name)]


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` of an earlier version as they are written today: what came later is at its default."""
    training = settings["training"]
    same = [name for name, value in SETTINGS_GONE.items() if name in training and training[name] == value]
    kept = settings | {"training": {name: value for name, value in training.items() if name not in same}}
    try:
        return json.loads(Settings.model_validate(kept).model_dump_json())
    except ValidationError:  # a setting is unknown today: it is named as differing
        return kept


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as one level of ``group.key``."""
    groups = {name: value if isinstance(value, dict) else {"": value} for name, value in settings.items()}
    return {
        f"{group}.{key}".rstrip("."): value
        for group, entries in groups.items()
        for key, value in entries.items()
    }


def _row(split: str, strategy: str, figure: str, reference: float, here: float) -> tuple:
    allowed = TOLERANCES[figure] * (abs(reference) if figure in RELATIVE else 1.0)
    return split, strategy, figure, reference, here, allowed, abs(here - reference) <= allowed


def _semivariogram_rows(run: Run, folder: Path) -> list[tuple]:
    reference, here = (
        json.loads(path.read_text()) for path in (folder / "semivariogram.json", run.semivariogram)
    )
    names = ("nugget", "partial_sill", "range_km")
    return [_row("train", "semivariogram fit", name, reference[name], here[name]) for name in names]


def _both(run: Run, folder: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table ``name`` of the reference and of the run."""
    return pd.read_csv(_kept(folder / "tables" / f"{name}.csv")), pd.read_csv(run.table(name))


def _accuracy_rows(run: Run, folder: Path) -> list[tuple]:
    """Means over seeds; a reference that is smaller than its tolerance says nothing and is left out."""
    keys = ["split", "strategy"]
    reference, here = (
        table.groupby(keys, sort=False)[COLUMNS].mean() for table in _both(run, folder, "accuracy")
    )
    return [
        _row(*key, figure, reference.loc[key, figure], here.loc[key, figure])
        for key in reference.index.intersection(here.index, sort=False)
        for figure in COLUMNS
        if reference.loc[key, figure] > TOLERANCES[figure]
    ]


def _difference_rows(run: Run, folder: Path) -> list[tuple]:
    """Paired differences of accuracies: reproduced where the difference here lies in the reference's 95 %
    interval."""
    keys = ["split", "strategy", "baseline", "metric"]
    reference, here = (table.set_index(keys) for table in _both(run, folder, "comparison"))
    rows = []
    for key in reference.index.intersection(here.index, sort=False):
        split, strategy, baseline, metric = key
        known, found = reference.loc[key], here.loc[key, "difference"]
        low, middle, high = known["ci_low"], known["difference"], known["ci_high"]
        if metric.startswith("acc_") and high - low > 0.002:
            width, inside = max(high - middle, middle - low), low <= found <= high
            rows.append((split, f"{strategy}-{baseline}", metric, middle, found, width, inside))
    return rows


def format_comparison(table: pd.DataFrame, sentence: str) -> str:
    """The comparison as text for a terminal."""
    if table.empty:
        return sentence
    lines = [
        f"{'split':13}{'strategy':26}{'figure':14}{'reference':>11}{'here':>11}{'tolerance':>11}  reproduced"
    ]
    for row in table.itertuples(index=False):
        numbers = "".join(f"{value:>11.4g}" for value in (row.reference, row.here, row.tolerance))
        lines.append(
            f"{row.split:13}{row.strategy:26}{row.figure:14}{numbers}  {'yes' if row.reproduced else 'NO'}"
        )
    return "\n".join([*lines, sentence])


# ---- the page


def write_index(run: Run, provenance: dict[str, Any], notebooks: list[dict[str, str]]) -> Path:
    """Write results/<run>/index.html: all in one page but maps, notebooks and tables, to which it links.

    Args:
        notebooks: title, ipynb and html (relative links) of each executed notebook.
    """
    reference, sentence = (
        compare_with_reference(run) if run.table("accuracy").exists() else (pd.DataFrame(), "")
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparison, intervals, by_continent = (
        _table(run, f) for f in ("comparison", "intervals", "gain_by_continent")
    )
    lead, dataset = _lead(run), provenance["settings"]["dataset"]["name"]
    screen = first_screen(lead, comparison, by_continent, _table(run, "gain_cells"))
    figures = [(name, text) for name, text in FIGURES.items() if run.figure(name).exists()]
    page = environment.get_template("index.html.j2").render(
        run=run,
        screen=screen,
        charts=[
            _chart("By strategy", screen["strategies"]),
            _chart(f"{lead}, by continent", screen["continents"]),
        ],
        accuracy=accuracy_cells(intervals, _table(run, "bounds")),
        differences=difference_tables(
            _only(comparison, COMPARED), ["split", "baseline"], "strategy", "metric"
        ),
        continents=difference_tables(_only(by_continent, [HEADLINE]), ["split"], "continent", "strategy"),
        heading=_heading,
        splits={split: text for (name, split), text in SPLITS.items() if name == dataset},
        fit=json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        figures=[(name, text, _picture(run.figure(name))) for name, text in figures],
        maps=_maps(run),
        tables=sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        notebooks=notebooks,
        provenance=provenance,
        provenance_file=run.provenance.name,
        settings=provenance["settings"],
        data=DATA.get(dataset, dataset),
        paper=beside_the_paper(intervals),
        reference=reference.to_dict("records"),
        reference_sentence=sentence,
        points=points,
        least_photos=LEAST_PHOTOS,
    )
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
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=84, method=4)
    return {
        "data": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "width": small.width,
        "height": small.height,
    }


# ---- the first screen


@dataclass(frozen=True)
class Row:
    """One line of a chart: a difference in percentage points and its interval; NaN where there is none.

    Attributes:
        label: strategy or continent; ``photos``: how many; ``verdict``: one of ``VERDICTS``.
        uses_curve: whether this is a strategy that uses the semivariogram.
    """

    label: str
    photos: int
    difference: float
    low: float
    high: float
    verdict: str
    uses_curve: bool


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
        ``lead``; ``split``; ``strategies``, the rows of all; of the lead: ``found``, its row, ``held_out``,
        its row on the cells held out whole, ``continents``, its rows, ``comparisons``, their number, and
        ``cells``, by side in km.
    """
    if comparison.empty:
        return {"lead": lead, "split": "", "strategies": [], "found": None, "continents": []}
    split = comparison["split"].iloc[0]
    of_lead = f"strategy == {lead!r} and split == {split!r} and metric == {HEADLINE!r}"
    continents, cells = (
        table.query(of_lead) if len(table) else table for table in (by_continent, gain_cells)
    )
    strategies = strategy_rows(comparison, split)
    held_out = strategy_rows(comparison, HELD_OUT) if split != HELD_OUT else []
    return {
        "lead": lead,
        "split": split,
        "strategies": strategies,
        "found": _row_of(lead, strategies),
        "held_out": _row_of(lead, held_out),
        "own": _row_of(PAPERS_OWN, strategies),
        "control": _row_of(CONTROL, strategies),
        "continents": continent_rows(continents),
        "comparisons": int(continents["comparisons"].max()) if len(continents) else 0,
        "cells": cells.groupby(["side_km", "verdict"], sort=False)
        .size()
        .unstack(fill_value=0)
        .to_dict("index")
        if len(cells)
        else {},
    }


def _row_of(label: str, rows: list[Row]) -> Row | None:
    return next((row for row in rows if row.label == label), None)


def strategy_rows(comparison: pd.DataFrame, split: str) -> list[Row]:
    """Each strategy against the baseline within 200 km on ``split``: what gains first, the larger gain
    first."""
    of_split = comparison[(comparison["split"] == split) & (comparison["baseline"] == BASELINE)]
    rows = [
        _chart_row(one.strategy, one, one.ci_low, one.ci_high, _verdict(one.ci_low, one.ci_high))
        for one in of_split[of_split["metric"] == HEADLINE].itertuples()
    ]
    return sorted(rows, key=lambda row: (VERDICTS.index(row.verdict), -row.difference))


def continent_rows(of_lead: pd.DataFrame) -> list[Row]:
    """The continents of one split and strategy within 200 km, the largest difference first."""
    rows = of_lead.sort_values("difference", ascending=False).itertuples() if len(of_lead) else []
    return [
        _chart_row(one.continent, one, one.corrected_low, one.corrected_high, one.verdict) for one in rows
    ]


def _chart_row(label: str, one: Any, low: float, high: float, verdict: str) -> Row:
    uses_curve = label not in REGISTRY or REGISTRY[label].needs_curve
    return Row(label, int(one.n), 100 * one.difference, 100 * low, 100 * high, verdict, uses_curve)


def _verdict(low: float, high: float) -> str:
    return "gains" if low > 0 else "loses" if high < 0 else "not shown"


def points(value: float, sign: bool = True) -> str:
    """Percentage points with one decimal and a true minus; "+" before what is positive where ``sign``; 0 has
    no sign."""
    value = round(value, 6)
    text = f"{value:+.1f}" if sign else f"{value:.1f}"
    return "0.0" if float(text) == 0.0 else text.replace("-", "\u2212")


def _chart(title: str, rows: list[Row]) -> dict[str, Any]:
    """Rows with dot and interval as percent of one scale that holds zero and every interval, and its
    ticks."""
    ends = [value for row in rows for value in (row.low, row.difference, row.high) if math.isfinite(value)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = next((one for one in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / one <= 6), 100)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)

    def place(value: float) -> float | None:
        return round(100.0 * (value / step - first) / (last - first), 2) if math.isfinite(value) else None

    drawn = [
        {"row": row, "dot": place(row.difference) if math.isfinite(row.low) else None}
        | {"left": place(row.low), "right": place(row.high)}
        for row in rows
    ]
    ticks = [
        (place(step * k), f"{step * k:+g}".replace("-", "\u2212") if k else "0")
        for k in range(first, last + 1)
    ]
    return {"title": title, "rows": drawn, "ticks": ticks, "zero": place(0.0)}


# ---- tables for reading


def accuracy_cells(intervals: pd.DataFrame, bounds: pd.DataFrame) -> list[dict[str, Any]]:
    """The accuracy table: one entry a split, with its rows; values with their 95 % intervals as text.

    Args:
        intervals: of :func:`lib.evaluate.intervals.levels`.
        bounds: rows ceiling and chance, without intervals.
    """
    if intervals.empty:
        return []
    metrics, entries = list(dict.fromkeys(intervals["metric"])), []
    for split, of_split in intervals.groupby("split", sort=False):
        rows = []
        for strategy, frame in of_split.groupby("strategy", sort=False):
            found = frame.set_index("metric").loc[metrics, ["value", "ci_low", "ci_high"]]
            texts = [[_amount(metric, value) for value in found.loc[metric]] for metric in metrics]
            cells = [(value, f"{low}–{high}") for value, low, high in texts]
            rows.append({"strategy": strategy, "cells": cells, "is_bound": False})
        for limit in bounds[bounds["split"] == split].to_dict("records") if len(bounds) else []:
            cells = [(_amount(metric, limit[metric]), "") for metric in metrics]
            rows.append({"strategy": limit["strategy"], "cells": cells, "is_bound": True})
        entries.append({"split": split, "metrics": [_heading(metric) for metric in metrics], "rows": rows})
    return entries


def _amount(metric: str, value: float) -> str:
    return f"{round(100 * value, 6):.1f}" if metric.startswith("acc_") else f"{value:,.0f}"


def _heading(metric: str) -> str:
    return f"{int(metric[4:-2]):,} km" if metric.startswith("acc_") else metric.replace("_km", ", km")


def difference_tables(table: pd.DataFrame, by: list[str], row: str, column: str) -> list[dict[str, Any]]:
    """Differences for reading: one entry for each value of ``by``, with its rows; points, interval and
    verdict.

    Args:
        table: intervals that are corrected for the number of comparisons are taken, where there are any.
        row, column: what stands in rows and columns.
    """
    entries = []
    prefix = "corrected" if "corrected_low" in table else "ci"
    for key, frame in table.groupby(by, sort=False) if len(table) else []:
        columns = list(dict.fromkeys(frame[column]))
        rows = [
            {"name": name, "photos": int(of_row["n"].max())}
            | {"cells": [_difference(of_row[of_row[column] == one], prefix) for one in columns]}
            for name, of_row in frame.groupby(row, sort=False)
        ]
        comparisons = int(frame["comparisons"].max()) if "comparisons" in frame else 0
        entries.append({"key": key, "columns": columns, "rows": rows, "comparisons": comparisons})
    return entries


def _difference(found: pd.DataFrame, prefix: str) -> dict[str, str]:
    """Points, interval and verdict of the one row of ``found``; a dash where there is none or too few
    photos."""
    if found.empty or not math.isfinite(found[f"{prefix}_low"].iloc[0]):
        return {"points": "–", "interval": "", "verdict": "too few photos"}
    middle, low, high = (found[name].iloc[0] for name in ("difference", f"{prefix}_low", f"{prefix}_high"))
    interval = "no photo differs" if low == high == 0.0 else f"[{points(100 * low)}, {points(100 * high)}]"
    return {"points": points(100 * middle), "interval": interval, "verdict": _verdict(low, high)}


def beside_the_paper(intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the paper's table and the same two strategies of this run, percent of the photos; empty without
    a table."""
    if intervals.empty:
        return []
    first = intervals[intervals["split"] == intervals["split"].iloc[0]]
    rows = [{"source": "paper, OSV5M", "strategy": name, "cells": cells} for name, cells in PAPER.items()]
    for name in (BASELINE, PAPERS_OWN):
        found = first[first["strategy"] == name].set_index("metric")
        if len(found):
            cells = [_amount(metric, found.loc[metric, "value"]) for metric in PAPER_METRICS]
            rows.append({"source": f"this run, {first['split'].iloc[0]}", "strategy": name, "cells": cells})
    return rows
