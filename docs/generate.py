"""Writes docs/reference/ from the code, and tables of the kept runs into README.md, results.md, study.md.

``python docs/generate.py``; a test finds what is stale.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lib import runs, settings
from lib.method import negatives
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.show import report, style
from lib.show.report import points
from lib.train.metrics import COMPARED_KM as RADII

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
KEPT = PROJECT / "results" / "reference"
HEAD = "<!-- Made by docs/generate.py from the code: change it there. -->\n"
SPLITS = {"test": "random split `test`", "test_blocked": "held-out cells `test_blocked`"}
BOUNDS = ("ceiling", "chance")
STARTING_S = 20
"""What the kept ``quick`` took beside its notebooks, by the clock."""


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"|{'|'.join(f' {one} ' if one else ' ' for one in line)}|" for line in lines)


def cell(text: object) -> str:
    """``text`` for a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def paragraph(text: str | None) -> str:
    """The first paragraph of a docstring in one line: code as Markdown has it, everything else escaped."""
    first = " ".join((text or "").partition("\n\n")[0].split())
    first = re.sub(r":(?:mod|func|class|meth):`~?([^`]+)`", r"`\1`", first).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", first)
    parts[::2] = [re.sub(r"([*_<|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


# --- docs/reference ---------------------------------------------------------------------------------------


def allowed(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "$ref" in schema:
        return allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(allowed(one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {allowed(schema['items'], definitions)}"
    names = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:,.16g}" for key, sign in bounds.items() if key in schema]
    kind = schema.get("type", "anything")
    kind = "path" if schema.get("format") == "path" else names.get(kind, kind)
    return " ".join([kind, ", ".join(limits)]).strip()


def settings_page() -> str:
    """Every setting: key, what it may be, default, meaning."""
    parts = [
        "# Settings",
        "A profile (`notebooks/profiles/*.yaml`) names what differs from these defaults; "
        "`--set group.key=value` overrides single entries. An unknown key or an impossible value is refused "
        "with the file, the key and what would be valid. Relative paths are relative to the project.",
        "`training.variants` are settings of one strategy and count before those of `training`. "
        "`--set training.beta=4` is for every strategy: it removes their own `beta`. For one alone: "
        "`--set training.variants.margin_frequencies.beta=4`.",
    ]
    whole = {"of the whole run": settings.Settings}
    for group, model in (whole | settings.GROUPS).items():
        title = f"`{group}`" if group not in whole else "Of the whole run, in no group"
        if "name" in model.model_fields and group != "backbone":
            title = f"`dataset`: `{group}`"
        schema = model.model_json_schema()
        parts.append(f"## {title}\n\n{paragraph(inspect.getdoc(model))}")
        rows = []
        for key, one in schema["properties"].items():
            if key in {"profile", "dataset", *settings.GROUPS}:
                continue
            default = cell(f"`{json.dumps(one['default'], ensure_ascii=False)}`")
            what = cell(allowed(one, schema.get("$defs", {})))
            rows.append((f"`{key}`", what, default, cell(one.get("description", ""))))
        parts.append(table(("key", "value", "default", "meaning"), rows))
    parts += ["## Strategies", "What `training.strategies` may name, and the settings that each reads."]
    rows = []
    for one in negatives.REGISTRY.values():
        curve, reads = "yes" if one.needs_curve else "no", ", ".join(one.parameters)
        rows.append((f"`{one.name}`", one.kind, cell(one.description), curve, reads))
    parts.append(table(("strategy", "kind", "what it does", "reads the curve", "reads"), rows))
    return "\n\n".join(parts) + "\n"


def files_page() -> str:
    """What a run leaves behind."""
    run, folder = runs.Run(settings.load("quick"), Path("results/NAME")), "results/NAME"
    examples = {"checkpoint": ("STRATEGY", 0), "history": ("STRATEGY", 0), "receipt": ("STAGE",)}
    examples |= dict.fromkeys(("table", "figure", "map"), ("NAME",))
    rows = []
    for name, member in vars(runs.Run).items():
        getter = getattr(member, "fget", member)
        value = None
        if isinstance(member, property) and name not in {"device", "name"}:
            value = getter(run)
        elif name in examples:
            value = getter(run, *examples[name])
        if isinstance(value, Path):
            rows.append((f"`{value.relative_to(folder)}`", paragraph(inspect.getdoc(member))))
    rows += [
        ("`notebooks/*.ipynb`, `*.html`", "the executed notebooks, and each as a page that needs no network"),
        ("`logs/*.log`", "what each notebook printed, with the time"),
        ("`logs/comparison.txt`", "every figure beside the reference run's"),
        ("`index.html`", "what to open first"),
        ("`SHA256SUMS`", "for `sha256sum --check`: the checksum of every file but receipts and logs"),
    ]
    figures = [(f"`figures/{name}.png`", cell(text)) for name, text in report.FIGURES.items()]
    return "\n\n".join([
        "# Files of a run",
        "Below `results/NAME/`. Features, checkpoints, tables and predictions are reused where nothing that "
        "they depend on has changed. A stage's receipt names its inputs, settings, code and packages, and "
        "the checksums of what it wrote.",
        table(("file", "what it is"), rows),
        "## Figures",
        "Each also as PDF. Which of them there are depends on the notebooks that were executed.",
        table(("figure", "what it shows"), figures),
    ]) + "\n"  # fmt: skip


def commands_page() -> str:
    """The help of run_all.sh, which is its first comment, and what the other commands do."""
    script = (PROJECT / "run_all.sh").read_text(encoding="utf-8")
    text = re.sub(r"^# ?", "", re.match(r"#!.*\n((?:#.*\n)+)", script)[1], flags=re.MULTILINE)
    return (
        f"# Commands\n\n```text\n{text}```\n\n`./run_tests.sh [pytest arguments]` runs the tests, with "
        "`--thorough` also the long ones; `./run_benchmarks.sh [NAME…]` runs the benchmarks. "
        "`python -m lib.predict --help` places photos, `python -m lib.exchange --help` exports a model for "
        "the package `geoclip`. `sha256sum --check SHA256SUMS`, in the folder of a run, checks its files.\n"
    )


def kept(run: str, name: str) -> pd.DataFrame:
    """A table of a kept run."""
    return pd.read_csv(KEPT / run / "tables" / f"{name}.csv")


def accuracies() -> pd.DataFrame:
    """Means over the seeds of the kept ``quick``, by split and strategy, bounds last; percent and km."""
    both = pd.concat([kept("quick", name) for name in ("accuracy", "bounds")])
    means = both.groupby(["split", "strategy"], sort=False).mean(numeric_only=True)
    shares = means.filter(like="acc_").mul(100).map(lambda value: points(value, sign=False))
    return shares.assign(median=means["median_km"].map("{:,.0f} km".format))


def interval(row: pd.Series, low: str = "ci_low", high: str = "ci_high") -> str:
    """A difference and its interval, in percentage points."""
    return f"{points(100 * row['difference'])} [{points(100 * row[low])}, {points(100 * row[high])}]"


def label(name: str) -> str:
    """A strategy as code, a bound in italics."""
    return f"*{name}*" if name in BOUNDS else f"`{name}`"


def plain(name: str) -> str:
    """What people read for a strategy; a bound in italics."""
    return f"*{name}*" if name in BOUNDS else style.NAMES.get(name, f"`{name}`")


def first_screen() -> str:
    """The table of README: the strategies of ``quick`` on both splits, by plain names."""
    values, asked = accuracies(), [("test", "200km"), ("test_blocked", "2500km")]
    names = [*settings.load("quick").training.strategies, "nearest_neighbour", "chance"]
    cells = {name: [values.loc[(split, name), f"acc_{radius}"] for split, radius in asked] for name in names}
    rows = [(plain(name), *of_name) for name, of_name in cells.items()]
    return table(("% placed within", "200 km, random", "2,500 km, held out"), rows)


def expect() -> str:
    """How long a first run takes, and a number to expect of it."""
    written = json.loads((KEPT / "quick" / "provenance.json").read_text(encoding="utf-8"))
    minutes = math.ceil((sum(written["seconds_by_notebook"].values()) + STARTING_S) / 60)
    share = accuracies().loc["test", "acc_200km"]
    text = (
        f"The first run takes {minutes} minutes on two recent CPU cores, up to twice that on older ones; "
        f"before it 2 to 5 for the environment (7 GB; results take 0.5). "
        f"Expect GeoCLIP's loss at {share['infonce']} %."
    )
    return textwrap.fill(text, 100)


def findings() -> str:
    """The main findings in three plain lines."""
    radii = (("test", "acc_200km"), ("test_blocked", "acc_2500km"))
    third = study_table("third", "papers_question").query("world == 'blue_marble'")
    third = third.set_index(["baseline", "split", "metric"])
    near, far = (interval(third.loc[("infonce geoclip", *one)]) for one in radii)
    equal, equal_far = (interval(third.loc[("infonce geoclip_equal", *one)]) for one in radii)
    second = study_table("second", "papers_question").set_index(["world", "split", "metric"])
    earlier = interval(second.loc[("blue_marble", "test_blocked", "acc_2500km")])
    names = ["strategy", "baseline", "split", "metric"]
    alike = study_table("third", "alike").query("world == 'blue_marble'").set_index(names)
    push = interval(alike.loc[("constant_offset geoclip_equal", "infonce geoclip_equal", *radii[0])])
    longer = interval(alike.loc[("infonce places", "infonce geoclip_equal", *radii[0])])
    explored = study_table("third", "exploratory").query("world == 'blue_marble'").set_index(names)
    ahead = interval(explored.loc[("semivariance_margin places", "nearest_neighbour", "test", "acc_100km")])
    quick = kept("quick", "comparison").set_index(["split", "strategy", "baseline", "metric"])
    scales = interval(quick.loc[("test", "infonce_frequencies", "infonce", "acc_200km")])
    share = accuracies().loc["test", "acc_200km"]
    text = (
        f"* **The paper's idea** gains {near} points on random windows (200 km; third study, 16 passes). At "
        f"the same temperature {equal} is left, and a plain push on all wrong places, without any curve, "
        f"gains {push}. Held out (2,500 km): {far}, at the same temperature {equal_far}, in the second study "
        f"{earlier}.\n"
        f"* **Scales that fit the training places** gain more than any loss: {scales} points after 6 passes, "
        f"{longer} after 16, set by hand nearly as much. Held out they may lose.\n"
        "* **No training at all**: the place of the most alike training window is within 200 km for "
        f"{share['nearest_neighbour']} % of random windows and leads within 100 km; after 16 passes, with "
        f"denser candidates, margin + scales leads there, by {ahead}."
    )
    return "\n".join(textwrap.fill(one, 100, subsequent_indent="  ") for one in text.split("\n"))


def by_radius(*more: str) -> list[str]:
    """The head of a table with a column a radius."""
    return ["", *(f"{radius:,} km" for radius in RADII), *more]


def all_radii() -> str:
    """Every split, strategy and radius of ``quick``."""
    values, columns = accuracies(), [*(f"acc_{radius}km" for radius in RADII), "median"]
    rows = []
    for split, title in SPLITS.items():
        rows.append((f"**{title}**", *[""] * len(columns)))
        for name, row in values.loc[split].iterrows():
            also = "" if name in BOUNDS else f", {plain(name)}"
            rows.append((f"{label(name)}{also}", *row[columns]))
    return table(by_radius("median"), rows)


def all_differences() -> str:
    """Every paired difference of ``quick``."""
    found, rows = kept("quick", "comparison"), []
    for split, title in SPLITS.items():
        rows.append((f"**{title}**", *[""] * len(RADII)))
        chosen = found[found["split"] == split].groupby(["baseline", "strategy"], sort=False)
        for (baseline, strategy), one in chosen:
            metrics = one.set_index("metric")
            if baseline == "infonce" or split == "test":
                values = [interval(metrics.loc[f"acc_{radius}km"]) for radius in RADII]
                rows.append((f"`{strategy}` − `{baseline}`", *values))
    return table(by_radius(), rows)


def the_study() -> str:
    """Every strategy of ``study`` against ``infonce``, random split, best first; bold: Holm's test."""
    found = kept("study", "ablations").query("split == 'test'").set_index(["strategy", "metric"])
    level = kept("study", "final").query("split == 'test' and strategy == 'infonce'")
    level = level.set_index("metric")["value"]
    shares = [points(100 * level[f"acc_{radius}km"], sign=False) for radius in RADII]
    rows = [("`infonce`, % of the photos", "baseline", *shares)]
    order = found.xs("acc_200km", level="metric")["difference"].sort_values(ascending=False, kind="stable")
    for name in order.index:
        cells = []
        for radius in RADII:
            row = found.loc[(name, f"acc_{radius}km")]
            text = interval(row, "corrected_low", "corrected_high")
            cells.append(f"**{text}**" if row["verdict"] in {"gains", "loses", "better", "worse"} else text)
        strategy = negatives.REGISTRY.get(name)
        rows.append((label(name), strategy.kind if strategy else "removed", *cells))
    head = by_radius()
    return table([*head[:1], "kind", *head[1:]], rows)


ENDPOINTS = {("test", 200): "random, 200 km", ("test_blocked", 750): "held out, 750 km"}
ENDPOINTS |= {("test_blocked", 2_500): "held out, 2,500 km"}
WORLDS = {"blue_marble": "Blue Marble", "shaded_relief": "shaded relief"}
WHOSE = {"geoclip": "GeoCLIP's", "curve": "the curve's", "hand_set": "hand-set"}
MORE = {"places": "the places'"}


TUNING = {"": ", as planned", "tuned": ", tuned alike", "equal": ", same rate and temperature"}


def study_table(study: str, name: str) -> pd.DataFrame:
    """A table of the ``second`` or ``third`` study."""
    return pd.read_csv(KEPT / "study" / f"{study}_{name}.csv")


def of_arm(arm: str) -> str:
    """A strategy and whose frequencies it has; *tuned*: its learning rate was searched at 16 epochs;
    *equal*: it has the learning rate and the temperature of what it is compared with."""
    name, _, kind = arm.partition(" ")
    kind, _, how = kind.rpartition("_") if kind.endswith(("_tuned", "_equal")) else (kind, "", "")
    whose = "" if kind in {"geoclip", ""} else f", {(WHOSE | MORE)[kind]} frequencies"
    return f"`{name}`{whose}{f' *{how}*' if how else ''}"


def contrasts_of(study: str, name: str) -> str:
    """Paired differences at the primary endpoints; bold where Holm's test leaves them, where it was made."""
    found, rows = study_table(study, name), []
    for world, title in WORLDS.items():
        of_world = found[found["world"] == world]
        rows += [(f"**{title}**", *[""] * len(ENDPOINTS))] if len(of_world) else []
        for (ours, theirs), one in of_world.groupby(["strategy", "baseline"], sort=False):
            told, texts = one.set_index(["split", "metric"]), []
            for split, radius in ENDPOINTS:
                there = (split, f"acc_{radius}km") in told.index
                cell = told.loc[(split, f"acc_{radius}km")] if there else {}
                text = interval(cell) if there else ""
                texts.append(f"**{text}**" if cell.get("p_holm", 1.0) < 0.05 else text)
            rows.append((f"{of_arm(ours)} − {of_arm(theirs)}", *texts))
    return table(("", *ENDPOINTS.values()), rows)


def papers_question(study: str) -> str:
    """``semivariogram`` less ``infonce`` in each world at every radius that is reached."""
    found, rows = study_table(study, "papers_question"), []
    asked = [("test", radius) for radius in RADII] + [("test_blocked", 750), ("test_blocked", 2_500)]
    for (world, baseline), one in found.groupby(["world", "baseline"], sort=False):
        told = one.set_index(["split", "metric"])
        how = TUNING[baseline.partition("geoclip_")[2]] if study == "third" else ""
        rows.append(
            (
                f"{WORLDS[world]}{how}",
                *(interval(told.loc[(split, f"acc_{radius}km")]) for split, radius in asked),
            )
        )
    words = {"test": "random", "test_blocked": "held out"}
    return table(("", *(f"{words[split]}, {radius:,} km" for split, radius in asked)), rows)


def third_levels() -> str:
    """Accuracies of the third study's arms, mean over draws and seeds; the best on random photos first."""
    found, rows = study_table("third", "levels"), []
    asked = [("test", 25), *ENDPOINTS]
    for world, title in WORLDS.items():
        one = found[found["world"] == world].set_index(["strategy", "split"])
        rows += [(f"**{title}**", *[""] * len(asked))] if len(one) else []
        order = (
            one.xs("test", level="split")["acc_200km"].sort_values(ascending=False).index if len(one) else []
        )
        for arm in order:
            values = (one.loc[(arm, split), f"acc_{radius}km"] for split, radius in asked)
            rows.append((of_arm(arm), *(points(100 * value, sign=False) for value in values)))
    return table(("%", "random, 25 km", *ENDPOINTS.values()), rows)


def third_scaling() -> str:
    """Gains within 200 km by the number of training photos, and what smaller sizes predict at 24,000."""
    found, rows = study_table("third", "scaling").query("metric == 'acc_200km'"), []
    for name, one in found.groupby("contrast", sort=False):
        told = one.set_index("photos")
        rows.append((name, *(interval(told.loc[size]) for size in told.index)))
    words = {0: "slope on ln N", -24_000: "24,000, predicted"}
    return table(("", *(words.get(size, f"{size:,}") for size in told.index)), rows)


def third_shares() -> str:
    """Accuracy within 200 km on validation by the share of the Nyquist frequency."""
    found = study_table("third", "shares")
    share = found["settings"].map(lambda text: json.loads(text)["nyquist_share"])
    world = found["world"].map(lambda name: "shaded relief" if "relief" in name else "Blue Marble")
    wide = found.assign(share=share, name=world).pivot(
        index=["name", "photos"], columns="share", values="validation_200km"
    )
    values = 100 * wide.sort_index()
    rows = [
        (f"{name}, {photos:,}", *(points(value, sign=False) for value in row))
        for (name, photos), row in values.iterrows()
    ]
    return table(("photos", *(f"1/{1 / one:.0f}" if one < 1 else "1" for one in values.columns)), rows)


def third_fits() -> str:
    """What each weighting of the lags makes of the curve, and of the score of arms that read it."""
    found = study_table("third", "curves_by_fit")
    arms = [name for name in found.columns if " " in name]
    rows = [
        (row["weights"], f"{row['from_km']:.0f} km", f"{row['nugget']:.3f}", f"{row['exponent']:.2f}",
         f"{row['length_km']:,.0f} km", f"{row['range_km']:,.0f} km",
         *(f"{100 * row[arm]:.1f}" for arm in arms))
        for row in found.to_dict("records")
    ]  # fmt: skip
    return table(("weights", "lags from", "nugget", "exponent", "length", "range", *map(of_arm, arms)), rows)


def second_overlap() -> str:
    """Accuracy of ``infonce`` by distance to the nearest training place, and how many photos there are."""
    found, rows = study_table("second", "overlap"), []
    for world, title in WORLDS.items():
        one = found[found["world"] == world]
        for what, column in ((f"{title}: % of the photos", "share"), ("% within 200 km", "acc_200km")):
            rows.append((what, *(points(100 * value, sign=False) for value in one[column])))
    limits = one[["from_km", "to_km"]].to_numpy()
    names = [f"{low:.0f} to {high:.0f} km" for low, high in limits[:-2]]
    return table(("nearest training place", *names, f"beyond {limits[-2, 0]:.0f} km", "all"), rows)


def second_levels() -> str:
    """Accuracies of all arms in both worlds, and the ceiling."""
    found = study_table("second", "levels")
    head = [
        "strategy",
        "frequencies",
        *(f"{title}: {text}" for title in WORLDS.values() for text in ENDPOINTS.values()),
    ]
    told = found.set_index(["world", "split", "strategy"])
    names, rows = dict.fromkeys(arm.split()[0] for arm in found["strategy"]), []
    arms = [(name, kind) for name in names if name != "ceiling" for kind in WHOSE]
    for name, kind in [*arms, ("ceiling", "")]:
        values = [
            points(100 * told.loc[(world, split, f"{name} {kind}".strip()), f"acc_{radius}km"], sign=False)
            for world in WORLDS
            for split, radius in ENDPOINTS
        ]
        rows.append((label(name), WHOSE.get(kind, ""), *values))
    return table(head, rows)


def leaderboard() -> str:
    """Every arm of the second study in both worlds, the best on random photos of Blue Marble first."""
    asked = [(world, split, radius) for world in WORLDS for split, radius in list(ENDPOINTS)[::2]]
    found = study_table("second", "levels").set_index(["world", "split", "strategy"])
    names = [name for name in found.index.unique("strategy") if name != "ceiling"]
    values = {
        name: [found.loc[(world, split, name), f"acc_{radius}km"] for world, split, radius in asked]
        for name in names
    }
    order = sorted(names, key=lambda name: -values[name][0])
    rows = [(of_arm(name), *(points(100 * value, sign=False) for value in values[name])) for name in order]
    return table(
        ("", *(f"{WORLDS[world]}: {ENDPOINTS[split, radius]}" for world, split, radius in asked)), rows
    )


def second_sharpest() -> str:
    """The sharper margins less the margin, on Blue Marble's tests."""
    found, rows = study_table("second", "sharpest"), []
    for name, one in found.groupby("strategy", sort=False):
        told = one.set_index(["split", "metric"])
        asked = (("test", 25), ("test", 200), ("test", 750), ("test", 2_500))
        cells = [told.loc[(split, f"acc_{radius}km")] for split, radius in (*asked, *list(ENDPOINTS)[1:])]
        rows.append((f"`{name}`", *map(interval, cells)))
    radii = [f"random, {radius} km" for radius in ("25", "200", "750", "2,500")]
    return table(("", *radii, *list(ENDPOINTS.values())[1:]), rows)


def second_factorial() -> str:
    """Differences to ``infonce`` within 200 km on validation, by batch and steps."""
    found, rows = study_table("second", "factorial_differences"), []
    chosen = found[(found["split"] == "validation") & (found["metric"] == "acc_200km")]
    for shape, one in chosen.groupby("shape", sort=False):
        _, batch, _, steps = shape.split()
        told = one.set_index("strategy")
        cells = (interval(told.loc[name]) for name in ("constant_offset", "semivariance_margin"))
        rows.append((f"{int(batch):,}", steps, *cells))
    return table(("batch", "steps", "`constant_offset`", "`semivariance_margin`"), rows)


def the_curve() -> str:
    """The parameters of the kept curve of ``quick`` by their names in either field."""
    fit = json.loads((KEPT / "quick" / "semivariogram.json").read_text(encoding="utf-8"))
    families = "Exponential, Gaussian (RBF), Matern, Stable, …"
    length = f"{fit['length_scale_rad']:.4f} rad, {fit['length_scale_rad'] * EARTH_RADIUS_KM:,.0f} km"
    rows = [
        ("noise variance", "**nugget** $n$", f"{fit['nugget']:.3f}"),
        ("signal variance", "**partial sill** $c$", f"{fit['partial_sill']:.3f}"),
        ("total variance", "**sill** $n + c$", f"{fit['nugget'] + fit['partial_sill']:.3f}"),
        ("length scale", "**length scale** $\\ell$", length),
        ("kernel family", f"**family**: {families}", f"{fit['family']}, exponent {fit['exponent']:.3f}"),
        (
            '"far enough to be independent"',
            "**range** $\\rho$",
            f"{fit['range_km']:,.0f} km, at 95 % of the sill",
        ),
    ]
    return table(("machine learning", "geostatistics", "here, `semivariogram.json` of `quick`"), rows)


def where_time_goes() -> str:
    """Seconds of the kept ``quick`` by what they were spent on."""
    written = json.loads((KEPT / "quick" / "provenance.json").read_text(encoding="utf-8"))
    stages, whole = dict(written["seconds_by_stage"]), sum(written["seconds_by_notebook"].values())
    trainings = {name: seconds for name, seconds in stages.items() if name.startswith("training-")}
    told = {"manifest": "places and windows", "features": "features", "semivariogram": "the curve"}
    rows = [(text, stages[name]) for name, text in told.items()]
    rows.append((f"{len(trainings)} trainings", sum(trainings.values())))
    rows.append(("evaluation", stages["evaluation"]))
    rows.append(("starting notebooks, figures, maps, pages", whole - sum(seconds for _, seconds in rows)))
    told_of = [(text, f"{seconds:.0f} s") for text, seconds in [*rows, ("**all**", whole)]]
    return table(("what", "time"), told_of)


def filled(page: Path) -> str:
    """The text of ``page``, each table between its marks made anew."""
    makers = (first_screen, expect, findings, all_radii, all_differences, the_study, second_overlap)
    makers += (second_levels, second_sharpest, second_factorial, leaderboard, the_curve, where_time_goes)
    makers += (third_levels, third_scaling, third_shares, third_fits)
    by_name = {maker.__name__: maker for maker in makers}
    for study in ("second", "third"):
        by_name[f"{study}_papers_question"] = partial(papers_question, study)
        for name in ("primary", "exploratory", "alike", "longer"):
            by_name[f"{study}_{name}"] = partial(contrasts_of, study, name)
    mark = re.compile(r"(<!-- table (\w+), made by docs/generate.py -->\n).*?(<!-- end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    return mark.sub(lambda found: f"{found[1]}{by_name[found[2]]()}\n{found[3]}", text)


def pages() -> dict[Path, str]:
    """Every generated page, and every page with generated tables, by its path."""
    makers = (settings_page, files_page, commands_page)
    made = {}
    for make in makers:
        made[HERE / "reference" / f"{make.__name__.removesuffix('_page')}.md"] = HEAD + make()
    names = (
        "results",
        "study",
        "second-study",
        "second-study-more",
        "third-study",
        "semivariograms",
        "running",
        "bench",
    )
    with_tables = (PROJECT / "README.md", *(HERE / f"{name}.md" for name in names))
    return made | {page: filled(page) for page in with_tables}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
