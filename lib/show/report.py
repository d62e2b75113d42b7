"""The page that a reader opens first: results/<run>/index.html.

It runs no script and fetches nothing from a network. Figures, maps and tables are files of the same folder,
which it names relative to itself, so the folder may be moved. It computes nothing but rounding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from lib.data import features, places
from lib.data.manifest import read_table
from lib.evaluate.evaluation import CONTROL, SCALES, typical
from lib.evaluate.intervals import BASELINE, HELD_OUT_KM, LEAST_PHOTOS, NEAREST_NEIGHBOUR, UNTRAINED, points
from lib.method.errors import BundleError
from lib.method.negatives import REGISTRY
from lib.runs import Run, cache, writing
from lib.show import by_distance, style
from lib.show.candidate_maps import place_names
from lib.show.reference import compare_with_reference
from lib.show.world import TEMPLATES
from lib.train.metrics import COMPARED, HEADLINE
from lib.train.training import best_strategy

PAPER, HELD_OUT_SPLIT = "semivariogram", "test_blocked"
"""The strategy that puts the paper's two definitions to work; the split of held-out cells."""
LEAST_VALIDATION_PHOTOS = 30
"""With fewer validation photos strategies tie, and nothing is chosen."""
FIGURES = {
    "answer": "A photo, where it was taken (ring) and where the model puts it (cross).",
    "semivariogram": "How different two photos look by their distance: measured (dots) and fitted (line). "
    "Where the line is steep, looks tell near from far; beyond the range distance adds next to nothing.",
    "differences": "How many more photos are placed within each radius than with GeoCLIP’s loss. A bar, the "
    "95 % interval, that crosses zero may be chance; one that does not is a gain (right) or a loss (left).",
    "differences_to_control": "The same against similarity, the control that looks without geography. Only "
    "what lies right of zero here is owed to the curve.",
    "photos": "Training photos drawn at random. They show what a model has to go by. Dark ones are "
    "brightened.",
    "places": "Where the photos were taken. The nearer a training photo, the easier a place is to find.",
    "pairs": "Pairs of photos that look more alike than one expects at their distance. Near ones are nearly "
    "right (false negatives); far ones are costly mistakes (hard negatives). Dark ones are brightened.",
    "pair_cloud": "Pairs of photos; below the curve they look more alike than expected. The range divides "
    "these look-alikes into false and hard negatives.",
    "margin": "The curve, by how much a wrong place must lose for it, and where the wrong places are. Where "
    "nearly all lie on the flat part, nearly all must lose by the same.",
    "waves": "Lengths of the waves in which the location encoder sees places. Those left of the line are "
    "finer than the training places can tell.",
    "baseline_training": "Loss and validation accuracy of GeoCLIP’s loss by epoch; bands hold all seeds. "
    "What still rises at the end would gain from more epochs.",
    "training": "Loss and validation accuracy of every strategy by epoch; bands hold all seeds. Losses of "
    "different strategies cannot be compared; their accuracies can.",
    "error_distribution": "Percentage of the photos within each distance. The farther left a line, the "
    "better.",
    "by_continent": "Accuracy by continent, with 95 % intervals. Long bars mean few photos or cells.",
    "candidates": "Four photos, and how the model spreads its probability over the Earth. One cluster: such "
    "a look is found in one region. Several: these regions look alike.",
}
"""Of each figure, in the order of the story, what one sees (the first sentence) and what follows."""
MAPS = {
    "predictions": ("Every photo", "True and predicted place, marked by error; search by id, step by error."),
    "predictions_test_blocked": ("Every held-out photo", "The same for cells held out whole."),
    "candidates": ("Whole answers", "Candidates and probability of a few photos."),
}
"""Title and description of each map."""
DATA = {"blue_marble": "satellite windows of NASA’s Blue Marble", "osv5m": "OpenStreetView-5M, street photos",
        "folder": "a folder of photos"}  # fmt: skip
"""What a reader calls a data set."""


def write_index(run: Run, provenance: dict[str, Any], notebooks: list[dict[str, str]]) -> Path:
    """Write results/<run>/index.html, which links to figures, maps, notebooks and tables. Trains nothing.
    ``notebooks`` are title, ipynb and html (relative links) of each executed notebook."""
    is_evaluated, names = run.table("accuracy").exists(), ("comparison", "gain_by_continent")
    reference, sentence = compare_with_reference(run) if is_evaluated else (pd.DataFrame(), "")
    comparison, gains = (_table(run, name) for name in names)
    chosen, validation_photos = _of_validation(run)
    screen, settings = first_screen(chosen, comparison, gains), provenance["settings"]
    levels, splits = _table(run, "intervals"), [*comparison.get("split", pd.Series(dtype=str)).unique()]
    of_split = {"split": screen["split"]}
    within = _only(levels, metric=HEADLINE, **of_split)
    strategies = [BASELINE, *(row.label for row in screen["strategies"])]
    names = {one: style.named(one, splits) for one in [*strategies, *splits]}
    parts = {
        "run": run, "provenance": provenance, "settings": settings, "notebooks": notebooks, "screen": screen,
        "data": DATA.get(settings["dataset"]["name"], settings["dataset"]["name"]), "heading": _heading,
        "accuracy": accuracy_tables(levels, _table(run, "bounds")),
        "differences": difference_tables(comparison, ["split", "baseline"], "strategy", "metric"),
        "continents": difference_tables(_only(gains, **of_split), ["split"], "continent", "strategy"),
        "fit": json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        "figures": {name: _figure(run, name) for name in FIGURES if run.figure(name).exists()},
        "typical": _typical(run, chosen), "steps": _steps(run),
        "names": {name: plain for name, plain in names.items() if plain != name},
        "of_curve": [row for row in screen["strategies"] if uses_curve(run, row.label)],
        "placed": {row["strategy"]: 100 * row["value"] for row in within.to_dict("records")},
        "maps": [(name, *words) for name, words in MAPS.items() if run.map(name).exists()],
        "tables": sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        "reference": reference.to_dict("records"), "reference_sentence": sentence,
        "cut": [*_table(run, "cut").get("said", [])],
        "validation_photos": validation_photos, "least_validation_photos": LEAST_VALIDATION_PHOTOS,
        "least_photos": LEAST_PHOTOS,
    }  # fmt: skip
    strict = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=TEMPLATES, autoescape=True, **strict)
    environment.filters["named"] = lambda name: style.named(name, splits)
    path = run.folder / "index.html"
    with writing(path) as aside:
        aside.write_text(environment.get_template("index.html.j2").render(parts), encoding="utf-8")
    return path


def _table(run: Run, name: str) -> pd.DataFrame:
    """The run's table ``name``; empty where it has not been made, or where there was nothing to put in it."""
    return read_table(run.table(name)) if run.table(name).exists() else pd.DataFrame()


def _only(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows of ``table`` with these ``values`` by column; an empty table, without columns, stays empty."""
    return table[(table[[*values]] == pd.Series(values)).all(axis=1)] if len(table) else table


def _of_validation(run: Run) -> tuple[str, int]:
    """The strategy that validation chose, and by how many photos; "" and 0 before all are trained."""
    try:
        with cache.as_finished():
            splits = features.photos(run, ["split"])["split"]
            return best_strategy(run)[0], int((splits == "validation").sum())
    except BundleError:
        return "", 0


def _figure(run: Run, name: str) -> dict[str, Any]:
    """What the page needs of a figure; its size in pixels, so that nothing moves while it loads."""
    seen, _, follows = FIGURES[name].partition(". ")
    with Image.open(run.figure(name)) as image:
        size = {"width": image.width, "height": image.height}
    return {"name": name, "seen": seen.rstrip(".") + ".", "follows": follows} | size


def _typical(run: Run, chosen: str) -> dict[str, Any]:
    """Of the photo of :func:`lib.evaluate.evaluation.typical`: error, places; {} where there is none."""
    predictions = pd.read_parquet(run.predictions) if run.predictions.exists() else pd.DataFrame()
    if predictions.empty or chosen not in set(predictions["strategy"]):
        return {}
    photo = typical(predictions, chosen)
    columns = ["latitude", "longitude", "predicted_latitude", "predicted_longitude"]
    places_deg = photo[columns].to_numpy(float).reshape(2, 2)
    near = zip(place_names(places.describe(places_deg)), places_deg, strict=True)
    words = [f"near {name} ({style.place_label(*place)})" for name, place in near]
    return {"km": photo["error_km"], "truth": words[0], "answer": words[1]}


def _steps(run: Run) -> dict[str, Any]:
    """See :func:`lib.show.by_distance.steps`; {} before notebook 03."""
    with cache.as_finished():
        return by_distance.steps(run, _table(run, "typical_pairs"))


class Row(NamedTuple):
    """A difference in percentage points of so many photos (in so many held-out cells), and its interval."""

    label: str
    photos: int
    difference: float
    low: float
    high: float
    cells: int = 0

    @property
    def verdict(self) -> str:
        """gains, unclear, loses, too few photos or too few cells; the last two have no interval."""
        if not math.isfinite(self.low):
            return "too few cells" if self.cells else "too few photos"
        return "gains" if self.low > 0 else "loses" if self.high < 0 else "unclear"

    @property
    def words(self) -> str:
        """Verdict, difference and interval as text, such as ``unclear: +9.0, −1.6 to +19.5``."""
        named = {"gains": "a gain", "loses": "a loss"}.get(self.verdict, self.verdict)
        if self.low == self.high == 0.0:
            return f"{named}: no photo differs"
        numbers = f": {points(self.difference)}, {points(self.low)} to {points(self.high)}"
        return named if named.startswith("too few") else named + numbers


def uses_curve(run: Run, name: str) -> bool:
    """Whether the strategy or variant ``name`` uses the semivariogram; one that is not known here counts."""
    strategy, own = run.settings.training.own(name)
    needs = strategy not in REGISTRY or REGISTRY[strategy].needs_curve
    return name not in UNTRAINED and (needs or own.frequencies == "curve")


def _rows(table: pd.DataFrame, label: str) -> list[Row]:
    """Differences in ``table``, named by the column ``label``; with corrected intervals if there are any."""
    prefix = "corrected" if "corrected_low" in table else "ci"
    if table.empty:
        return []
    numbers = 100 * table[["difference", f"{prefix}_low", f"{prefix}_high"]].to_numpy()
    cells = table.get("cells", pd.Series(0, table.index))
    return [Row(*one) for one in zip(table[label], table["n"], *numbers.T, cells, strict=True)]


def first_screen(chosen: str, comparison: pd.DataFrame, by_continent: pd.DataFrame) -> dict[str, Any]:
    """The rows of the first screen, on the first split and within 200 km: of all strategies, some by name,
    and of ``chosen`` by validation: ``found``, ``held_out`` (on held-out cells) and ``continents``;
    ``judged`` are the first two, less ``SCALES`` where it has other frequencies: what the curve adds."""
    split = comparison["split"].iloc[0] if len(comparison) else ""
    against = _only(comparison, baseline=BASELINE)
    rows = {row.label: row for row in _rows(_only(against, split=split, metric=HEADLINE), "strategy")}
    base = SCALES if len(_only(comparison, baseline=SCALES, strategy=chosen)) else BASELINE
    far_away = f"acc_{HELD_OUT_KM}km"

    def of_chosen_less(baseline: str, of: str, metric: str) -> Row | None:
        asked = _only(comparison, baseline=baseline, strategy=chosen, split=of, metric=metric)
        return next(iter(_rows(asked, "strategy")), None)

    judged = [of_chosen_less(base, split, HEADLINE), of_chosen_less(base, HELD_OUT_SPLIT, far_away)]
    held_out = of_chosen_less(BASELINE, HELD_OUT_SPLIT, far_away)
    if split == HELD_OUT_SPLIT:
        judged[1] = held_out = None
    of_chosen = _rows(_only(by_continent, strategy=chosen, split=split, metric=HEADLINE), "continent")
    named = {"found": chosen, "paper": PAPER, "control": CONTROL, "nearest": NEAREST_NEIGHBOUR}
    return {name: rows.get(strategy) for name, strategy in named.items()} | {
        "chosen": chosen, "split": split, "strategies": list(rows.values()), "held_out_km": HELD_OUT_KM,
        "held_out": held_out, "judged": judged, "base": base,
        "continents": sorted(of_chosen, key=lambda row: -row.difference),
    }  # fmt: skip


def accuracy_tables(intervals: pd.DataFrame, bounds: pd.DataFrame) -> list[tuple[str, list[str], list]]:
    """For each split its metrics and rows: strategy, value and 95 % interval a metric, is it a bound."""
    entries = []
    for split, levels in intervals.groupby("split", sort=False) if len(intervals) else []:
        metrics, rows = levels["metric"].unique().tolist(), []
        for strategy, frame in levels.groupby("strategy", sort=False):
            numbers = frame.set_index("metric").loc[metrics, ["value", "ci_low", "ci_high"]]
            texts = [[_amount(metric, value) for value in row] for metric, *row in numbers.itertuples()]
            rows.append((strategy, [(value, f"{low}–{high}") for value, low, high in texts], False))
        for bound in _only(bounds, split=split).to_dict("records"):
            rows.append((bound["strategy"], [(_amount(name, bound[name]), "") for name in metrics], True))
        entries.append((split, metrics, rows))
    return entries


def _amount(metric: str, value: float) -> str:
    return points(100 * value, sign=False) if metric.startswith("acc_") else f"{value:,.0f}"


def _heading(metric: str, unit: str = "") -> str:
    return f"{int(metric[4:-2]):,} km{unit}" if metric.startswith("acc_") else metric.replace("_km", ", km")


def difference_tables(table: pd.DataFrame, by: list[str], row: str, column: str) -> list[dict[str, Any]]:
    """Differences for reading: one entry for each value of ``by``; ``row`` and ``column`` name the others.
    With metrics as columns it has the accuracies of comparisons; otherwise the one within 200 km."""
    entries, metrics = [], COMPARED if column == "metric" else (HEADLINE,)
    shown = pd.concat([_only(table, metric=metric) for metric in metrics])
    for key, frame in shown.groupby(by, sort=False) if len(shown) else []:
        rows = [
            (name, one["n"].max(), {cell.label: cell for cell in _rows(one, column)})
            for name, one in frame.groupby(row, sort=False)
        ]
        about = {"key": key, "columns": frame[column].unique(), "rows": rows}
        entries.append(about | {"comparisons": frame["comparisons"].max() if "comparisons" in frame else 0})
    return entries
