"""The comparison of a run with the reference run that the repository keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lib.evaluate.intervals import BASELINE, UNTRAINED
from lib.runs import Run
from lib.runs.provenance import FILE, read_provenance
from lib.runs.run import REFERENCE
from lib.settings import Settings
from lib.train.metrics import COLUMNS

OF_CURVE = {"nugget": 0.005, "partial_sill": 0.005, "range_km": 0.02}
"""Tolerance of the curve's parameters, which no seed moves: absolute, of kilometres a share."""
FALSE_ALARMS = 0.05
"""Share of the runs in which, by chance alone, some figure may miss its tolerance."""
FIGURE = ["is_difference", "split", "strategy", "figure"]
OF_PLACE = {"device", "deterministic", "dataset.root", "backbone.workers"}
"""Settings of files and devices, in which a run may differ from the reference."""
OF_REFERENCE = ["split", "strategy", "figure", "reference", "here", "tolerance", "reproduced"]


def compare_with_reference(run: Run) -> tuple[pd.DataFrame, str]:
    """Each figure of ``run`` beside the reference's (``OF_REFERENCE``; empty where there is nothing to
    compare with), and what came of it in one sentence."""
    folder, empty = REFERENCE / run.settings.profile, pd.DataFrame(columns=OF_REFERENCE)
    if not (folder / FILE).is_file():
        return empty, f"No reference run is kept for profile {run.settings.profile}."
    kept = Settings.model_validate(read_provenance(folder)["settings"])  # a later setting has its default
    then, now = (
        pd.json_normalize(one.model_dump(mode="json")).iloc[0].to_dict() for one in (kept, run.settings)
    )
    names = sorted({*then, *now} - OF_PLACE)
    if differing := [name for name in names if then.get(name) != now.get(name)]:
        named = ", ".join(differing[:3]) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
        return empty, f"Not compared with the reference run: other settings ({named})."
    table = beside(run, folder)
    said = "numbers of the reference run are reproduced within their tolerance."
    return table, f"{table['reproduced'].sum()} of {len(table)} {said}"


def beside(run: Run, folder: Path) -> pd.DataFrame:
    """The fitted curve, accuracies and their paired differences: reference, here, tolerance, reproduced.
    A training on another processor rounds differently and may end as another seed would. So the mean over S
    seeds may differ by t sd sqrt(2 / S): sd is the reference's spread over seeds, pooled over the strategies
    of a split, t Student's quantile for ``FALSE_ALARMS`` among all figures (Bonferroni)."""
    fits = (folder / "semivariogram.json", run.semivariogram)
    then, now = (json.loads(path.read_text(encoding="utf-8")) for path in fits)
    curve = [("train", "semivariogram fit", name, then[name], now[name]) for name in OF_CURVE]
    curve = pd.DataFrame(curve, columns=OF_REFERENCE[:5])
    tolerance = curve["figure"].map(OF_CURVE)
    curve["tolerance"] = tolerance * curve["reference"].where(curve["figure"] == "range_km", 1.0)

    then, now = _by_seed(folder / "tables" / "accuracy.csv"), _by_seed(run.table("accuracy"))
    means = {"reference": then.groupby(FIGURE, sort=False).mean(), "here": now.groupby(FIGURE).mean()}
    table, seeds = pd.concat(means, axis=1, join="inner"), then.index.get_level_values("seed").nunique()
    variances = then.groupby(FIGURE).var().reindex(table.index).groupby(["is_difference", "split", "figure"])
    table["spread"] = np.sqrt(2.0 * variances.transform("mean") / seeds)
    table["degrees_of_freedom"] = variances.transform("size") * (seeds - 1)
    table = table[table["spread"] > 0.0].reset_index()  # without figures that no seed moves, such as nought
    level = 1.0 - FALSE_ALARMS / 2.0 / max(1, len(table))
    table["tolerance"] = stats.t.ppf(level, table["degrees_of_freedom"]) * table["spread"]
    table = pd.concat([curve, table], ignore_index=True)
    table["reproduced"] = (table["here"] - table["reference"]).abs() <= table["tolerance"]
    return table[OF_REFERENCE]


def _by_seed(path: Path) -> pd.Series:
    """Accuracies of the trained strategies by ``FIGURE`` and seed, and their differences to the baseline."""
    table = pd.read_csv(path)
    levels = table[~table["strategy"].isin(UNTRAINED)].set_index(["split", "strategy", "seed"])[COLUMNS]
    is_base = levels.index.get_level_values("strategy") == BASELINE
    base, others = levels[is_base].droplevel("strategy"), levels[~is_base]
    differences = others - base.reindex(others.index.droplevel("strategy")).to_numpy()
    differences = differences.rename(index=lambda name: f"{name}-{BASELINE}", level="strategy")
    both = pd.concat([levels, differences], keys=[False, True], names=["is_difference"])
    return both.rename_axis(columns="figure").stack()


def format_comparison(table: pd.DataFrame, sentence: str) -> str:
    """The comparison as text for a terminal."""
    said = table.assign(reproduced=np.where(table["reproduced"].astype(bool), "yes", "NO"))
    lines = said.to_string(index=False, float_format="{:.4g}".format) if len(table) else ""
    return f"{lines}\n{sentence}".lstrip()
