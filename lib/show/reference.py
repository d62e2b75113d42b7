"""The comparison of a run with the reference run that the repository keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from lib.evaluate.intervals import BASELINE
from lib.runs import Run
from lib.runs.provenance import FILE, read_provenance
from lib.runs.run import REFERENCE
from lib.train.metrics import COLUMNS

OF_CURVE = {"nugget": 0.005, "partial_sill": 0.005, "range_km": 0.02}
"""Tolerance of the curve's parameters, which no seed moves: absolute for cosine distances, a share of the
reference for kilometres."""
FALSE_ALARMS = 0.05
"""Share of the runs in which, by chance alone, some figure may miss its tolerance."""
KEYS = ["split", "strategy", "seed"]
OF_REFERENCE = ["split", "strategy", "figure", "reference", "here", "tolerance", "reproduced"]


def compare_with_reference(run: Run) -> tuple[pd.DataFrame, str]:
    """Each figure of ``run`` beside the reference's, and the result of the comparison in one sentence.

    Returns:
        split, strategy, figure, reference, here, tolerance, reproduced; empty where there is nothing to
        compare with, and the sentence says why.
    """
    folder, empty = REFERENCE / run.settings.profile, pd.DataFrame(columns=OF_REFERENCE)
    if not (folder / FILE).is_file():
        return empty, f"No reference run is kept for profile {run.settings.profile}."
    if differing := _differing_settings(run, folder):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        named = f"{', '.join(differing[:3])}{more}"
        return empty, f"Not compared with the reference run: other settings ({named})."
    table = beside(run, folder)
    good = f"{int(table['reproduced'].sum())} of {len(table)}"
    return table, f"{good} figures of the reference run are reproduced within their tolerance."


def _differing_settings(run: Run, folder: Path) -> list[str]:
    """Names of the settings in which ``run`` and reference differ, other than places of files and devices."""
    kept = read_provenance(folder)["settings"]
    here = run.settings.model_dump(mode="json")
    then, now = (pd.json_normalize(settings).iloc[0].to_dict() for settings in (kept, here))
    ignored = {"device", "deterministic", "dataset.root", "backbone.workers"}
    return [name for name in sorted({*then, *now} - ignored) if then.get(name) != now.get(name)]


def beside(run: Run, folder: Path) -> pd.DataFrame:
    """The fitted curve, accuracies and their paired differences: reference, here, tolerance, reproduced.

    A training on another processor rounds differently and may end as another seed would. So the mean over S
    seeds may differ by t sd sqrt(2 / S): sd is the reference's spread over seeds, pooled over the strategies
    of a split, t Student's quantile for ``FALSE_ALARMS`` among all figures (Bonferroni).
    """
    fits = (folder / "semivariogram.json", run.semivariogram)
    then, now = (json.loads(path.read_text(encoding="utf-8")) for path in fits)
    curve = [("train", "semivariogram fit", name, then[name], now[name]) for name in OF_CURVE]
    curve = pd.DataFrame(curve, columns=OF_REFERENCE[:5])
    tolerance = curve["figure"].map(OF_CURVE)
    curve["tolerance"] = tolerance * curve["reference"].where(curve["figure"] == "range_km", 1.0)

    paths = (folder / "tables" / "accuracy.csv", run.table("accuracy"))
    kept, here = (pd.read_csv(path).set_index(KEYS)[COLUMNS] for path in paths)
    table = pd.concat([_levels_and_differences(split, kept, here) for split in kept.index.unique("split")])
    table = table[table["spread"] > 0.0]  # a figure that no seed moves, such as nought everywhere
    degrees = table.pop("degrees_of_freedom")
    quantile = stats.t.ppf(1.0 - FALSE_ALARMS / 2.0 / max(1, len(table)), degrees)
    table["tolerance"] = quantile * table.pop("spread")
    table = pd.concat([curve, table], ignore_index=True)
    table["reproduced"] = (table["here"] - table["reference"]).abs() <= table["tolerance"]
    return table[OF_REFERENCE]


def _levels_and_differences(split: str, kept: pd.DataFrame, here: pd.DataFrame) -> pd.DataFrame:
    """Rows of :func:`_within` for the strategies that both tables have on ``split``, and for their
    differences to the baseline."""
    then, now = (table[table.index.get_level_values("split") == split].droplevel(0) for table in (kept, here))
    names = [name for name in then.index.unique("strategy") if name in now.index.unique("strategy")]
    levels = {name: (then.loc[name], now.loc[name]) for name in names}
    base = levels.get(BASELINE)
    differences = {
        f"{name}-{BASELINE}": (ours[0] - base[0], ours[1] - base[1])
        for name, ours in levels.items()
        if base and name != BASELINE
    }
    seeds = len(then.index.unique("seed"))
    return pd.concat([_within(split, found, seeds) for found in (levels, differences)])


def _within(split: str, found: dict[str, tuple[pd.DataFrame, pd.DataFrame]], seeds: int) -> pd.DataFrame:
    """Means over seeds of reference and run, the standard error of their difference, degrees of freedom.

    Args:
        found: name -> the figures by seed of the reference, and those of the run.
    """
    if not found:
        return pd.DataFrame(columns=[*OF_REFERENCE[:5], "spread", "degrees_of_freedom"])
    variance, rows = sum(then.var() for then, _ in found.values()) / len(found), []
    for name, (then, now) in found.items():
        both = {"reference": then.mean(), "here": now.mean(), "spread": np.sqrt(2.0 * variance / seeds)}
        named = pd.DataFrame(both).rename_axis("figure").reset_index()
        rows.append(named.assign(split=split, strategy=name))
    return pd.concat(rows).assign(degrees_of_freedom=len(found) * (seeds - 1))


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
