"""Where on Earth: differences by continent; and the intervals of every accuracy."""

from __future__ import annotations

from functools import partial

import pandas as pd

from lib.data.manifest import read_table
from lib.evaluate.evaluation import save_table
from lib.evaluate.intervals import compare, corrected, levels
from lib.runs import Run
from lib.train.metrics import COMPARED

TABLES = ("gain_by_continent", "intervals")
"""What :func:`make` writes."""


def continent_gains(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """Differences by continent, corrected for all strategies and continents of a split and radius.

    Args:
        continents: continent of each photo, indexed by id.
    """
    table = compare(predictions, metrics=COMPARED, groups=continents)
    return corrected(table, ("split", "metric")).rename(columns={"group": "continent"})


def make(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """``TABLES``, made once or reused: gains by continent, and every accuracy with its 95 % interval.

    Args:
        predictions: of all strategies and splits, as predictions.parquet has them.
        manifest: the photos' id and continent.
    """
    settings = run.settings.evaluation
    drawn = {"resamples": settings.bootstrap, "seed": settings.seed}
    run.produce(
        "regions",
        make=partial(_write, run, predictions, manifest, drawn),
        inputs=[
            run.require(run.predictions, "05_error_at_granularity"),
            run.require(run.manifest, "01_data_preparation"),
        ],
        outputs=[run.table(name) for name in TABLES],
        settings=drawn,
        code=[make],
    )
    return {name: read_table(run.table(name)) for name in TABLES}


def _write(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame, drawn: dict[str, int]) -> None:
    continents = manifest.set_index("id")["continent"]
    save_table(continent_gains(predictions, continents), run.table("gain_by_continent"))
    save_table(levels(predictions, **drawn), run.table("intervals"))
