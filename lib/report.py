"""What a reader opens first: results/<run>/index.html, and the comparison with the run that the repository keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from pydantic import ValidationError

from lib.evaluation import COLUMNS, mean_over_seeds
from lib.runs import RESULTS, Run, writing
from lib.settings import Settings

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
    """Write results/<run>/index.html: claim, tables with intervals, figures, links, settings, provenance.

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
    page = environment.get_template("index.html.j2").render(
        run=run,
        claims=claims(run),
        accuracy=_accuracy_rows_for_reading(run),
        bounds=_records(run.table("bounds")),
        comparison=_records(run.table("comparison")),
        fit=json.loads(run.semivariogram.read_text()) if run.semivariogram.exists() else None,
        figures=[(name, text) for name, text in FIGURES.items() if run.figure(name).exists()],
        maps=sorted(path.name for path in (run.folder / "maps").glob("*.html")),
        tables=sorted(path.name for path in (run.folder / "tables").glob("*.csv")),
        notebooks=notebooks,
        provenance=provenance,
        settings=provenance["settings"],
        reference=reference.to_dict("records"),
        reference_sentence=sentence,
    )
    path = run.folder / "index.html"
    with writing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _records(path: Path) -> list[dict[str, Any]]:
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def _accuracy_rows_for_reading(run: Run) -> list[dict[str, Any]]:
    if not run.table("accuracy").exists():
        return []
    return mean_over_seeds(pd.read_csv(run.table("accuracy"))).reset_index().to_dict("records")


def claims(run: Run) -> list[str]:
    """A sentence a split and strategy: at which radii its accuracy is higher or lower than the baseline's."""
    comparison = pd.DataFrame(_records(run.table("comparison")))
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
