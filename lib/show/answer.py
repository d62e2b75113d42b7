"""Does it help, and where on Earth? The answer in two sentences, put together from the run's tables with their intervals.

A strategy gains where its interval lies above zero, loses where it lies below; where it holds zero a difference is "not shown",
whatever the estimate. Writes words, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from lib.evaluate.evaluation import CONTROL
from lib.evaluate.regions import HEADLINE, LEAST_PHOTOS
from lib.method.negatives import REGISTRY

BASELINE = "infonce"
PAPERS_OWN = "semivariogram"
"""The strategy that puts the paper's two definitions, of false and of hard negatives, to work."""
MOST_NAMED = 3
"""Strategies or continents that a sentence names one by one, with their intervals; the rest are named or counted without."""
HELD_OUT = "test_blocked"
TESTED = ("gains", "not shown", "loses")


@dataclass(frozen=True)
class Row:
    """One line of a chart: a difference in percentage points and its interval; NaN where there is none.

    Attributes:
        label: strategy or continent. photos: how many. verdict: gains, loses, not shown or too few photos.
    """

    label: str
    photos: int
    difference: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Answer:
    """What the first screen says.

    Attributes:
        verdict: in a few words. helps, where: a sentence each; "" where there is nothing to compare.
        lead: the strategy that ``where`` is about.
        by_strategy, by_continent: what the sentences rest on.
        comparisons: how many comparisons the continents' intervals are corrected for.
    """

    verdict: str
    helps: str
    where: str
    lead: str
    by_strategy: list[Row]
    by_continent: list[Row]
    comparisons: int


def answer(comparison: pd.DataFrame, by_continent: pd.DataFrame, gain_cells: pd.DataFrame) -> Answer:
    """The answer of a run.

    Args:
        comparison: the table of :func:`lib.evaluate.evaluation.compare`; its first split is what the sentences are about.
        by_continent: of :func:`lib.evaluate.regions.continent_gains`. gain_cells: of :func:`lib.evaluate.regions.cell_gains`. Either may be empty.
    """
    world = strategies(comparison)
    if not world:
        return Answer("Nothing to compare", "", "", "", [], [], 0)
    lead = world[0].label
    split = comparison["split"].iloc[0]
    of_lead = by_continent[(by_continent["strategy"] == lead) & (by_continent["split"] == split)] if len(by_continent) else by_continent
    continents = continents_of(of_lead)
    return Answer(
        verdict(world), does_it_help(world), where_on_earth(world[0], continents, _cells(gain_cells, lead, split), _held_out(comparison, lead)),
        lead, world, continents, int(of_lead["comparisons"].max()) if any(row.verdict in TESTED for row in continents) else 0,
    )  # fmt: skip


def strategies(comparison: pd.DataFrame, split: str | None = None) -> list[Row]:
    """Each strategy against the baseline within 200 km on ``split`` (default: the first), the largest gain that is shown first."""
    if comparison.empty:
        return []
    chosen = comparison[(comparison["metric"] == HEADLINE) & (comparison["baseline"] == BASELINE)]
    rows = [
        Row(one.strategy, int(one.n), 100 * one.difference, 100 * one.ci_low, 100 * one.ci_high, _verdict(one.ci_low, one.ci_high))
        for one in chosen[chosen["split"] == (split or comparison["split"].iloc[0])].itertuples()
    ]
    order = {"gains": 0, "not shown": 1, "loses": 2}
    return sorted(rows, key=lambda row: (order[row.verdict], -row.difference))


def continents_of(by_continent: pd.DataFrame) -> list[Row]:
    """The continents of one split and strategy within 200 km, with corrected intervals, the largest difference first."""
    if by_continent.empty:
        return []
    chosen = by_continent[by_continent["metric"] == HEADLINE].sort_values("difference", ascending=False)
    return [
        Row(one.continent, int(one.n), 100 * one.difference, 100 * one.corrected_low, 100 * one.corrected_high, one.verdict)
        for one in chosen.itertuples()
    ]


def _verdict(low: float, high: float) -> str:
    return "gains" if low > 0 else "loses" if high < 0 else "not shown"


def verdict(world: Sequence[Row]) -> str:
    """The answer to "does it help?" in a few words: for how many of the strategies that use the curve, and whether for the paper's own."""
    world = [row for row in world if row.label not in REGISTRY or REGISTRY[row.label].needs_curve]
    gained, lost = (sum(row.verdict == word for row in world) for word in ("gains", "loses"))
    if not gained:
        return "No" if world and lost == len(world) else "Not shown"
    own = {row.label: row.verdict for row in world}.get(PAPERS_OWN)
    said = f"Yes, for {gained} of {len(world)} strategies that use the curve"
    return said + {"not shown": "; not shown for the paper\u2019s own", "loses": "; the paper\u2019s own loses"}.get(own, "")


def does_it_help(world: Sequence[Row]) -> str:
    """A sentence on which strategies gain within 200 km, by how much, and for which a difference is not shown."""
    gained, unshown, lost = ([row for row in world if row.verdict == word] for word in ("gains", "not shown", "loses"))
    parts = []
    if gained:
        more = f" and {len(gained) - MOST_NAMED} more gain too" if len(gained) > MOST_NAMED else ""
        first, *others = gained[:MOST_NAMED]
        said = [f"{first.label} places {points(first.difference, sign=False)} points more of the photos than GeoCLIP as it is ({interval(first, '95 % interval ')})"]
        parts.append(listed([*said, *(f"{row.label} {points(row.difference, sign=False)} ({interval(row)})" for row in others)]) + more)
    else:
        parts.append("no strategy is shown to place more of the photos than GeoCLIP as it is")
    if unshown:
        parts.append(_unshown(unshown))
    if lost:
        named = [f"{_called(row)} loses {points(abs(row.difference), sign=False)} ({interval(row)})" for row in lost[-MOST_NAMED:][::-1]]
        parts.append(listed(named) + (f" and {len(lost) - MOST_NAMED} more lose too" if len(lost) > MOST_NAMED else ""))
    return f"Within 200 km of the true place, {'; '.join(parts)}."


def _unshown(rows: Sequence[Row]) -> str:
    if len(rows) > MOST_NAMED:
        return f"for {len(rows)} others no difference is shown"
    return f"for {listed(f'{_called(row)} ({points(row.difference)}, {interval(row)})' for row in rows)} no difference is shown"


def _called(row: Row) -> str:
    return f"{row.label}, the control without geography," if row.label == CONTROL else row.label


def where_on_earth(lead: Row, continents: Sequence[Row], cells: Sequence[tuple[float, int, int, int]], held_out: Row | None) -> str:
    """A sentence on the continents where the difference of the strategy ``lead`` is shown, the cells, and places held out whole.

    Args:
        cells: for each size its side in km, how many gain, how many lose, how many were tested.
    """
    gained, unshown, lost, few = (
        [row for row in continents if row.verdict == word] for word in ("gains", "not shown", "loses", "too few photos")
    )
    is_gain, parts = lead.verdict == "gains", []
    if gained:
        parts.append(("is shown in " if is_gain else "is a gain in ") + listed(map(_named, gained)))
    if lost:
        parts.append(("turns into a loss in " if is_gain else "is a loss in ") + listed(map(_named, lost)))
    if unshown:
        parts.append("is not shown in " + listed(row.label for row in unshown) + " taken alone")
    if few and len(few) < len(continents):
        parts.append(f"is not tested in {listed(row.label for row in few)} (fewer than {LEAST_PHOTOS} photos)")
    if parts:
        said = f"By continent, {lead.label}\u2019s {'gain' if is_gain else 'difference'} {listed(parts)}"
    else:
        said = f"No continent has the {LEAST_PHOTOS} photos that a test needs"
    return said + _of_cells(cells) + ("" if held_out is None else _on_held_out(held_out)) + "."


def _named(row: Row) -> str:
    return f"{row.label} ({points(row.difference)}, {interval(row)})"


def _of_cells(cells: Sequence[tuple[float, int, int, int]]) -> str:
    tested = [one for one in cells if one[3]]
    if tested and not any(gained or lost for _, gained, lost, _ in tested):
        return f"; in no single cell is it shown ({listed(f'{count} of {side_km:,.0f} km' for side_km, _, _, count in tested)} tested)"
    said = [
        f"{gained or 'none'} of {count} of {side_km:,.0f} km" + (f" (a loss in {lost})" if lost else "") for side_km, gained, lost, count in tested
    ]
    return f"; by cell it is shown in {listed(said)}" if said else ""


def _on_held_out(row: Row) -> str:
    """The end of the sentence: the same strategy where no training photo is near."""
    if row.low == row.high == 0.0:
        return "; on cells held out whole no photo differs"
    is_shown = row.verdict != "not shown"
    found = f"{points(row.difference)} ({interval(row)})" if is_shown else f"not shown ({points(row.difference)}, {interval(row)})"
    return f"; on cells held out whole it is {found}"


def _cells(gain_cells: pd.DataFrame, lead: str, split: str) -> list[tuple[float, int, int, int]]:
    if gain_cells.empty:
        return []
    of_lead = (gain_cells["strategy"] == lead) & (gain_cells["split"] == split) & (gain_cells["metric"] == HEADLINE)
    return [
        (float(side_km), int((said == "gains").sum()), int((said == "loses").sum()), int((said != "too few photos").sum()))
        for side_km, said in gain_cells[of_lead].groupby("side_km", sort=False)["verdict"]
    ]


def _held_out(comparison: pd.DataFrame, lead: str) -> Row | None:
    if HELD_OUT not in set(comparison["split"]) or comparison["split"].iloc[0] == HELD_OUT:
        return None
    return next((row for row in strategies(comparison, HELD_OUT) if row.label == lead), None)


def points(value: float, sign: bool = True) -> str:
    """Percentage points with one decimal, with a true minus; "+" before what is positive where ``sign``; nought without either."""
    value = round(value, 6)
    text = f"{value:+.1f}" if sign else f"{value:.1f}"
    return "0.0" if float(text) == 0.0 else text.replace("-", "\u2212")


def interval(row: Row, before: str = "") -> str:
    """``+0.6 to +3.0``."""
    return f"{before}{points(row.low)} to {points(row.high)}"


def listed(parts: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
