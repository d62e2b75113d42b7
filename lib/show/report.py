"""What a reader opens first: results/<run>/index.html, and the comparison with the run that the repository keeps.

The page is one file: figures are in it, nothing is fetched, and it runs no script. Beyond rounding it computes nothing.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image
from pydantic import ValidationError

from lib.data.manifest import read_table
from lib.evaluate.evaluation import COLUMNS, COMPARED
from lib.evaluate.regions import HEADLINE
from lib.runs import RESULTS, Run, writing
from lib.settings import Settings
from lib.show import answer

REFERENCE = RESULTS / "reference"
"""Tables, figures and manifest of a run of ours, kept in git."""

TOLERANCES: dict[str, float] = {
    **{name: 0.02 for name in COLUMNS if name.startswith("acc_")},
    "median_km": 0.10,
    "mean_km": 0.10,
    "geoscore": 0.02,
    "nugget": 0.02,
    "partial_sill": 0.03,
    "range_km": 0.15,
}
"""How far a figure may lie from the reference's: absolute for fractions and cosine distances, a share of the reference for
kilometres and GeoScore. Wider than the seeds' spread: processors round differently, and bfloat16 is used where it is native."""
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
    "semivariogram_bands": "The curve with bands from resampling places, every family, and the range by each rule.",
    "semivariogram_by_continent": "A curve for each continent.",
    "semivariogram_geometry": "Which geometry of features tells near from far.",
    "learned_semivariogram": "The semivariogram of the learned embeddings.",
    "coverage": "How often the true place lies within its radius.",
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


def compare_with_reference(run: Run) -> tuple[pd.DataFrame, str]:
    """Each figure of ``run`` beside the reference's, and a sentence that says what the comparison came to.

    Returns:
        split, strategy, figure, reference, here, tolerance, reproduced; empty where there is nothing to compare with, and
        the sentence says why.
    """
    folder = REFERENCE / run.settings.profile
    empty = pd.DataFrame(columns=["split", "strategy", "figure", "reference", "here", "tolerance", "reproduced"])
    if not (folder / "manifest.json").exists():
        return empty, f"No reference run is kept for profile {run.settings.profile}."
    if differing := _differing_settings(run, folder):
        return empty, f"Not compared with the reference run: other settings ({', '.join(differing)})."
    rows = [*_semivariogram_rows(run, folder), *_accuracy_rows(run, folder), *_difference_rows(run, folder)]
    table = pd.DataFrame(rows, columns=empty.columns)
    good = int(table["reproduced"].sum())
    return table, f"{good} of {len(table)} figures of the reference run are reproduced within their tolerance."


def _differing_settings(run: Run, folder: Path) -> list[str]:
    """Names of the settings, other than places of files and devices, in which ``run`` and the reference differ."""
    reference = _complete(json.loads((folder / "manifest.json").read_text())["settings"])
    here = json.loads(run.settings.model_dump_json())
    ignored = {"device", "deterministic", "dataset.root", "backbone.workers"}
    then, now = (_flat(settings) for settings in (reference, here))
    return [name for name in sorted({*then, *now} - ignored) if then.get(name) != now.get(name)]


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` of an earlier version with those that came later at their defaults, which is what it did."""
    try:
        return json.loads(Settings.model_validate(settings).model_dump_json())
    except ValidationError:  # one has gone since: it is named as differing
        return settings


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as one level of ``group.key``."""
    groups = {name: value if isinstance(value, dict) else {"": value} for name, value in settings.items()}
    return {f"{group}.{key}".rstrip("."): value for group, entries in groups.items() for key, value in entries.items()}


def _row(split: str, strategy: str, figure: str, reference: float, here: float) -> tuple:
    allowed = TOLERANCES[figure] * (abs(reference) if figure in RELATIVE else 1.0)
    return split, strategy, figure, reference, here, allowed, abs(here - reference) <= allowed


def _semivariogram_rows(run: Run, folder: Path) -> list[tuple]:
    reference, here = (json.loads(path.read_text()) for path in (folder / "semivariogram.json", run.semivariogram))
    return [
        _row("train", "semivariogram fit", name, reference[name], here[name])
        for name in ("nugget", "partial_sill", "range_km")
    ]


def _accuracy_rows(run: Run, folder: Path) -> list[tuple]:
    """Means over seeds; a reference that is smaller than its tolerance says nothing and is left out."""
    keys = ["split", "strategy"]
    reference, here = (
        pd.read_csv(path).groupby(keys, sort=False)[COLUMNS].mean()
        for path in (folder / "tables" / "accuracy.csv", run.table("accuracy"))
    )
    return [
        _row(split, strategy, figure, reference.loc[(split, strategy), figure], here.loc[(split, strategy), figure])
        for split, strategy in reference.index.intersection(here.index, sort=False)
        for figure in COLUMNS
        if reference.loc[(split, strategy), figure] > TOLERANCES[figure]
    ]


def _difference_rows(run: Run, folder: Path) -> list[tuple]:
    """Paired differences of accuracies: reproduced where the difference here lies in the reference's 95 % interval."""
    keys = ["split", "strategy", "baseline", "metric"]
    reference, here = (
        pd.read_csv(path).set_index(keys) for path in (folder / "tables" / "comparison.csv", run.table("comparison"))
    )
    rows = []
    for key in reference.index.intersection(here.index, sort=False):
        split, strategy, baseline, metric = key
        known, found = reference.loc[key], here.loc[key, "difference"]
        if metric.startswith("acc_") and known["ci_high"] - known["ci_low"] > 0.002:
            width = max(known["ci_high"] - known["difference"], known["difference"] - known["ci_low"])
            name = f"{strategy}-{baseline}"
            rows.append(
                (split, name, metric, known["difference"], found, width, known["ci_low"] <= found <= known["ci_high"])
            )
    return rows


def format_comparison(table: pd.DataFrame, sentence: str) -> str:
    """The comparison as text for a terminal."""
    if table.empty:
        return sentence
    lines = [f"{'split':13}{'strategy':26}{'figure':14}{'reference':>11}{'here':>11}{'tolerance':>11}  reproduced"]
    for row in table.itertuples(index=False):
        numbers = "".join(f"{value:>11.4g}" for value in (row.reference, row.here, row.tolerance))
        lines.append(f"{row.split:13}{row.strategy:26}{row.figure:14}{numbers}  {'yes' if row.reproduced else 'NO'}")
    return "\n".join([*lines, sentence])


def write_index(run: Run, provenance: dict[str, Any], notebooks: list[dict[str, str]]) -> Path:
    """Write results/<run>/index.html, one page with everything in it but maps, notebooks and tables, to which it links.

    Args:
        notebooks: title, ipynb and html (relative links) of each executed notebook.
    """
    reference, sentence = compare_with_reference(run) if run.table("accuracy").exists() else (pd.DataFrame(), "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparison, intervals = _table(run, "comparison"), _table(run, "intervals")
    given = answer.answer(comparison, _table(run, "gain_by_continent"), _table(run, "gain_cells"))
    page = environment.get_template("index.html.j2").render(
        run=run,
        answer=given,
        charts=[_chart("By strategy", given.by_strategy), _chart(f"{given.lead}, by continent", given.by_continent)],
        claims=claims(run),
        accuracy=accuracy_cells(intervals, _table(run, "bounds")),
        differences=difference_cells(comparison),
        continents=continent_cells(_table(run, "gain_by_continent")),
        photos=dict(comparison.groupby("split", sort=False)["n"].max()) if len(comparison) else {},
        splits={split: text for (dataset, split), text in SPLITS.items() if dataset == provenance["settings"]["dataset"]["name"]},
        fit=json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        figures=[(name, text, _picture(run.figure(name))) for name, text in FIGURES.items() if run.figure(name).exists()],
        maps=_maps(run),
        maps_there={path.stem for path in run.map("any").parent.glob("*.html")},
        tables=sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        notebooks=notebooks,
        provenance=provenance,
        settings=provenance["settings"],
        data=DATA.get(provenance["settings"]["dataset"]["name"], provenance["settings"]["dataset"]["name"]),
        paper=beside_the_paper(intervals),
        reference=reference.to_dict("records"),
        reference_sentence=sentence,
        points=answer.points,
    )
    path = run.folder / "index.html"
    with writing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _table(run: Run, name: str) -> pd.DataFrame:
    """The run's table ``name``; empty where it has not been made, or where there was nothing to put in it."""
    path = run.table(name)
    return read_table(path) if path.exists() else pd.DataFrame()


def _maps(run: Run) -> list[tuple[str, str, str]]:
    """File, title and description of each map, those that answer the question first."""
    there = sorted(path.stem for path in (run.folder / "maps").glob("*.html"))
    known = [name for name in MAPS if name in there]
    return [(f"{name}.html", *MAPS.get(name, (name.replace("_", " "), ""))) for name in [*known, *sorted(set(there) - set(known))]]


def _picture(path: Path) -> dict[str, Any]:
    """The figure at ``path`` for the page itself: WebP in base64 and its size in pixels."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    if small.width > PICTURE_PX:
        small = small.resize((PICTURE_PX, round(small.height * PICTURE_PX / small.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=84, method=4)
    return {"data": base64.b64encode(buffer.getvalue()).decode("ascii"), "width": small.width, "height": small.height}


def _chart(title: str, rows: list[answer.Row]) -> dict[str, Any]:
    """Rows with dot and interval as percent of a common scale that holds zero and every interval, and the scale's ticks."""
    ends = [value for row in rows for value in (row.low, row.difference, row.high) if math.isfinite(value)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = next((one for one in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / one <= 6), 100)
    low, high = step * math.floor(low / step), step * max(math.ceil(high / step), math.floor(low / step) + 1)

    def _place(value: float) -> float:
        return round(100.0 * (value - low) / (high - low), 2)

    drawn = [
        {"row": row, "dot": _place(row.difference), "left": _place(row.low), "right": _place(row.high)}
        if math.isfinite(row.low)
        else {"row": row, "dot": None, "left": None, "right": None}
        for row in rows
    ]
    ticks = [(_place(step * k), f"{step * k:+g}".replace("-", "\u2212") if k else "0") for k in range(round(low / step), round(high / step) + 1)]
    return {"title": title, "rows": drawn, "ticks": ticks, "zero": _place(0.0)}


def accuracy_cells(intervals: pd.DataFrame, bounds: pd.DataFrame) -> list[dict[str, Any]]:
    """The accuracy table for reading: one entry a split, with its rows; values with their 95 % intervals as text.

    Args:
        intervals: of :func:`lib.evaluate.significance.final_table`. bounds: rows ceiling and chance, without intervals.
    """
    if intervals.empty:
        return []
    metrics, entries = list(dict.fromkeys(intervals["metric"])), []
    for split, of_split in intervals.groupby("split", sort=False):
        rows = []
        for strategy, frame in of_split.groupby("strategy", sort=False):
            by_metric = frame.set_index("metric")
            cells = [
                (_amount(metric, by_metric.loc[metric, "value"]), "–".join(_amount(metric, by_metric.loc[metric, end]) for end in ("ci_low", "ci_high")))
                for metric in metrics
            ]
            rows.append({"strategy": strategy, "cells": cells, "is_bound": False})
        for limit in bounds[bounds["split"] == split].to_dict("records") if len(bounds) else []:
            rows.append({"strategy": limit["strategy"], "cells": [(_amount(metric, limit[metric]), "") for metric in metrics], "is_bound": True})
        entries.append({"split": split, "metrics": [_heading(metric) for metric in metrics], "rows": rows})
    return entries


def _amount(metric: str, value: float) -> str:
    return f"{round(100 * value, 6):.1f}" if metric.startswith("acc_") else f"{value:,.0f}"


def _heading(metric: str) -> str:
    return f"{int(metric[4:-2]):,} km" if metric.startswith("acc_") else metric.replace("_km", ", km")


def difference_cells(comparison: pd.DataFrame) -> list[dict[str, Any]]:
    """Paired differences for reading: one entry a split and baseline, with its rows; points, interval and verdict."""
    if comparison.empty:
        return []
    chosen = comparison[comparison["metric"].isin(COMPARED)]
    return [
        {"split": split, "baseline": baseline, "metrics": [_heading(metric) for metric in COMPARED], "rows": [
            {"strategy": strategy, "cells": [_difference_cell(frame[frame["metric"] == metric], "ci") for metric in COMPARED]}
            for strategy, frame in rows.groupby("strategy", sort=False)
        ]}
        for (split, baseline), rows in chosen.groupby(["split", "baseline"], sort=False)
    ]  # fmt: skip


def continent_cells(by_continent: pd.DataFrame) -> list[dict[str, Any]]:
    """Differences within 200 km by continent for reading: one entry a split, with a column a strategy; corrected intervals."""
    if by_continent.empty:
        return []
    chosen = by_continent[by_continent["metric"] == HEADLINE]
    entries = []
    for split, of_split in chosen.groupby("split", sort=False):
        strategies = list(dict.fromkeys(of_split["strategy"]))
        rows = [
            {"continent": continent, "photos": int(frame["n"].max()),
             "cells": [_difference_cell(frame[frame["strategy"] == name], "corrected") for name in strategies]}
            for continent, frame in of_split.groupby("continent", sort=True)
        ]  # fmt: skip
        entries.append({"split": split, "strategies": strategies, "rows": rows, "comparisons": int(of_split["comparisons"].max())})
    return entries


def _difference_cell(found: pd.DataFrame, prefix: str) -> dict[str, str]:
    """Points, interval and what they say of the one row of ``found``; a dash where there is none or too few photos."""
    if found.empty or not math.isfinite(found[f"{prefix}_low"].iloc[0]):
        return {"points": "–", "interval": "", "verdict": "too few photos"}
    one = found.iloc[0]
    low, high = one[f"{prefix}_low"], one[f"{prefix}_high"]
    said = "gains" if low > 0 else "loses" if high < 0 else "not shown"
    return {
        "points": answer.points(100 * one["difference"]),
        "interval": "no photo differs" if low == high == 0.0 else f"[{answer.points(100 * low)}, {answer.points(100 * high)}]",
        "verdict": said,
    }


def beside_the_paper(intervals: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the paper's table and the same two strategies of this run, percent of the photos; empty without a table."""
    if intervals.empty:
        return []
    first = intervals[intervals["split"] == intervals["split"].iloc[0]]
    rows = [{"source": "paper, OSV5M", "strategy": name, "cells": cells} for name, cells in PAPER.items()]
    for name in (answer.BASELINE, "semivariogram"):
        found = first[first["strategy"] == name].set_index("metric")
        if len(found):
            cells = [_amount(metric, found.loc[metric, "value"]) for metric in PAPER_METRICS]
            rows.append({"source": f"this run, {first['split'].iloc[0]}", "strategy": name, "cells": cells})
    return rows


def claims(run: Run) -> list[str]:
    """A sentence a split and strategy: at which radii its accuracy is higher or lower than the baseline's."""
    comparison = _table(run, "comparison")
    if comparison.empty:
        return []
    radii = comparison["metric"].str.extract(r"^acc_(\d+)km$")[0].astype(float)
    comparison = comparison.assign(radius=radii).dropna(subset=["radius"]).sort_values("radius", kind="stable")
    sentences = []
    for (baseline, split, strategy), rows in comparison[comparison["radius"] > 1].groupby(
        ["baseline", "split", "strategy"]
    ):
        parts = [
            f"{verb} within {_and(_difference(row) for row in chosen.itertuples())}"
            for verb, chosen in (("higher", rows[rows["ci_low"] > 0]), ("lower", rows[rows["ci_high"] < 0]))
            if len(chosen)
        ]
        found = "; ".join(parts) or "no difference that these photos and seeds can show, at any radius"
        sentences.append(f"{strategy} against {baseline}, split {split}: {found}.")
    return sorted(sentences, key=lambda sentence: "no difference" in sentence)


def _difference(row: Any) -> str:
    points = f"{100 * row.difference:+.1f} points [{100 * row.ci_low:+.1f}, {100 * row.ci_high:+.1f}]"
    return f"{row.radius:,.0f} km ({points})"


def _and(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
