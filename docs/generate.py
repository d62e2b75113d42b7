"""Writes docs/reference/ from the code: settings, files, commands, functions; and, into README.md, results.md and study.md, the tables
of the kept runs. ``python docs/generate.py``; a test finds what is stale."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import lib
from lib import runs, settings
from lib.method import negatives
from lib.show import report
from lib.show.report import points
from lib.train.training import COMPARED_KM as RADII

HERE = Path(__file__).resolve().parent
HEAD = "<!-- Made by docs/generate.py from the code: change it there. -->\n"
LIB = Path(lib.__file__).parent
GROUPS = {
    "dataset": [settings.BlueMarble, settings.Folder, settings.OSV5M, settings.Script],
    "backbone": [settings.Backbone],
    "semivariogram": [settings.Semivariogram],
    "training": [settings.Training],
    "evaluation": [settings.Evaluation],
    "study": [settings.Study],
    "study.simulation": [settings.Simulation],
}

KEPT = HERE.parent / "results" / "reference"
SPLITS = {"test": "random split `test`", "test_blocked": "held-out cells `test_blocked`"}
BOUNDS = ("ceiling", "chance")


def cell(text: object) -> str:
    """``text`` for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


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
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:,.16g}" for key, sign in bounds.items() if key in schema]
    kind = "path" if schema.get("format") == "path" else names.get(schema.get("type", ""), "anything")
    return " ".join([kind, ", ".join(limits)]).strip()


def settings_page() -> str:
    """Every setting: key, what it may be, default, meaning."""
    parts = [
        "# Settings",
        "A profile (`notebooks/profiles/*.yaml`) names what differs from these defaults; `--set group.key=value` overrides single "
        "entries. An unknown key or an impossible value is refused with the file, the key and what would be valid.",
    ]
    for group, models in GROUPS.items():
        for model in models:
            schema = model.model_json_schema()
            own = f": `{model.model_fields['name'].default}`" if group == "dataset" else ""
            parts.append(f"## `{group}`{own}\n\n{paragraph(inspect.getdoc(model))}")
            rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
            for key, one in schema["properties"].items():
                default = json.dumps(one["default"], ensure_ascii=False) if "default" in one else "must be given"
                what = allowed(one, schema.get("$defs", {}))
                rows.append(f"| `{key}` | {cell(what)} | {cell(f'`{default}`' if 'default' in one else default)} | {cell(one.get('description', ''))} |")
            parts.append("\n".join(rows))
    parts.append("## Strategies\n\nWhat `training.strategies` may name, and the settings of `training` that each reads.")
    rows = ["| strategy | kind | what it does | reads the curve | reads |", "| --- | --- | --- | --- | --- |"]
    for name, row in negatives.table().iterrows():
        rows.append(f"| `{name}` | {row['kind']} | {cell(row['description'])} | {'yes' if row['needs_curve'] else 'no'} | {cell(row['reads'])} |")
    parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def files_page() -> str:
    """What a run leaves behind."""
    run = runs.Run(settings.load("quick"), Path("results/NAME"))
    rows = ["| file | what it is |", "| --- | --- |"]
    examples = {"checkpoint": ("STRATEGY", 0), "history": ("STRATEGY", 0), "receipt": ("STAGE",), "table": ("NAME",), "figure": ("NAME",), "map": ("NAME",)}
    for name, member in vars(runs.Run).items():
        value = member.fget(run) if isinstance(member, property) and name not in {"device", "name"} else None
        value = member(run, *examples[name]) if name in examples else value
        if isinstance(value, Path):
            text = inspect.getdoc(member.fget if isinstance(member, property) else member).splitlines()[0]
            rows.append(f"| `{value.relative_to('results/NAME')}` | {paragraph(text)} |")
    rows += [
        "| `notebooks/*.ipynb`, `*.html` | the executed notebooks, and each as a page that needs no network |",
        "| `logs/*.log` | what each notebook printed, with the time |",
        "| `logs/comparison.txt` | every figure beside the reference run's |",
        "| `manifest.json` | settings, versions, machine, times, checksums |",
        "| `index.html` | what to open first |",
    ]
    figures = ["| figure | what it shows |", "| --- | --- |", *(f"| `figures/{name}.png` | {cell(text)} |" for name, text in report.FIGURES.items())]
    return "\n\n".join([
        "# Files of a run",
        "Below `results/NAME/`. Features, checkpoints, tables and predictions are reused where nothing that they depend on has changed: the receipt of "
        "a stage holds the digest of its inputs, settings, code and packages, and the checksums of what it wrote.",
        "\n".join(rows), "## Figures", "Each also as PDF. Which of them there are depends on the notebooks that were executed.", "\n".join(figures),
    ]) + "\n"  # fmt: skip


def commands_page() -> str:
    """The help of run_all.sh as it stands in the script."""
    script = (HERE.parent / "run_all.sh").read_text(encoding="utf-8")
    text = re.search(r"cat <<'TEXT'\n(.*?)TEXT\n", script, re.DOTALL)[1]
    return f"# Commands\n\n```text\n{text}```\n\n`./run_tests.sh [pytest arguments]` runs the tests, with `--thorough` also those that take over a minute; `./run_benchmarks.sh [NAME…]` the benchmarks, `python -m lib.predict --help` places photos.\n"


def modules() -> Iterator[tuple[str, Path]]:
    """Name and file of each module, in the order in which they may import each other."""
    order = re.search(r"to the top: (.*?)\.\n", lib.__doc__, re.DOTALL)[1].replace("\n", " ").split(", ")
    for room in order:
        folder = LIB / room
        yield from [(f"lib.{room}", LIB / f"{room}.py")] if not folder.is_dir() else [
            (f"lib.{room}" + ("" if path.stem == "__init__" else f".{path.stem}"), path) for path in sorted(folder.glob("*.py"))
        ]


def functions_page() -> str:
    """Every public function and class: how it is called, and the first paragraph of what it says of itself."""
    parts = ["# Functions", "By module, from the bottom to the top: a module imports only what stands before it. What begins with an underscore is not for others."]
    for name, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts.append(f"## `{name}`\n\n{paragraph(ast.get_docstring(tree))}")
        rows = [line for node in tree.body for line in described(node)]
        parts += ["\n".join(rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def described(node: ast.stmt) -> Iterator[str]:
    """A list entry of a public function, or of a public class and its public methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return
    called = f"{node.name}({', '.join(arguments(node))})" if isinstance(node, ast.FunctionDef) else f"class {node.name}"
    yield f"* `{called}`: {paragraph(ast.get_docstring(node)) or 'see the code'}"
    for inner in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
            yield f"  * `{inner.name}({', '.join(arguments(inner))})`: {paragraph(ast.get_docstring(inner))}"


def arguments(node: ast.FunctionDef) -> list[str]:
    """Names of a function's arguments; those after a star can be named only."""
    plain = [one.arg for one in node.args.args if one.arg not in {"self", "cls"}]
    return plain + (["*", *(one.arg for one in node.args.kwonlyargs)] if node.args.kwonlyargs else [])


def paragraph(text: str | None) -> str:
    """The first paragraph of a docstring, in one line, with code as Markdown has it and nothing that it would take for HTML."""
    first = " ".join((text or "").partition("\n\n")[0].split())
    first = re.sub(r":(?:mod|func|class|meth):`~?([^`]+)`", r"`\1`", first).replace("``", "`")
    return "".join(part if number % 2 else re.sub(r"([*_<|])", r"\\\1", part) for number, part in enumerate(re.split(r"(`[^`]*`)", first)))


def accuracies() -> pd.DataFrame:
    """Means over the seeds of the kept ``quick``, by split and strategy, bounds last; in percent, the median in kilometres."""
    both = pd.concat([pd.read_csv(KEPT / "quick" / "tables" / f"{name}.csv") for name in ("accuracy", "bounds")])
    means = both.groupby(["split", "strategy"], sort=False).mean(numeric_only=True)
    shares = means.filter(like="acc_").mul(100).map(partial(points, sign=False))
    return shares.assign(median=means["median_km"].map("{:,.0f} km".format))


def interval(row: pd.Series, low: str, high: str) -> str:
    """A difference and its interval, in percentage points."""
    return f"{points(100 * row['difference'])} [{points(100 * row[low])}, {points(100 * row[high])}]"


def of_strategy(name: str, values: Iterable[object]) -> str:
    """A row of a table; bounds are set apart from strategies."""
    return " | ".join([f"| *{name}*" if name in BOUNDS else f"| `{name}`", *map(str, values)]) + " |"


def first_screen() -> str:
    """The table of README: both splits side by side, three radii."""
    table, columns = accuracies(), ["acc_100km", "acc_200km", "acc_2500km", "median"]
    head = "| | random: 100 km | 200 km | 2,500 km | median | held out: 100 km | 200 km | 2,500 km | median |\n" + "| --- " * 9 + "|\n"
    names = table.loc["test"].index
    return head + "\n".join(of_strategy(name, [value for split in SPLITS for value in table.loc[(split, name), columns]]) for name in names)


def all_radii() -> str:
    """Every split, strategy and radius of ``quick``."""
    table = accuracies()
    lines = ["| | " + " | ".join(f"{radius:,} km" for radius in RADII) + " | median |", "| --- " * 7 + "|"]
    for split, title in SPLITS.items():
        lines += [f"| **{title}** | | | | | | |"]
        lines += [of_strategy(name, row[[*(f"acc_{radius}km" for radius in RADII), "median"]]) for name, row in table.loc[split].iterrows()]
    return "\n".join(lines)


def all_differences() -> str:
    """Every paired difference of ``quick``."""
    table = pd.read_csv(KEPT / "quick" / "tables" / "comparison.csv")
    lines = ["| | " + " | ".join(f"{radius:,} km" for radius in RADII) + " |", "| --- " * 6 + "|"]
    for split, title in SPLITS.items():
        lines += [f"| **{title}** | | | | | |"]
        for (baseline, strategy), rows in table[table["split"] == split].groupby(["baseline", "strategy"], sort=False):
            by_radius = rows.set_index("metric")
            if baseline == "infonce" or split == "test":
                lines += [f"| `{strategy}` − `{baseline}` | " + " | ".join(interval(by_radius.loc[f"acc_{radius}km"], "ci_low", "ci_high") for radius in RADII) + " |"]
    return "\n".join(lines)


def the_study() -> str:
    """Every strategy of ``study`` against ``infonce`` on the random split, best first; bold where Holm's test leaves a difference."""
    table = pd.read_csv(KEPT / "study" / "tables" / "ablations.csv").query("split == 'test'").set_index(["strategy", "metric"])
    level = pd.read_csv(KEPT / "study" / "tables" / "final.csv").query("split == 'test' and strategy == 'infonce'").set_index("metric")["value"]
    lines = ["| | kind | " + " | ".join(f"{radius:,} km" for radius in RADII) + " |", "| --- " * 7 + "|"]
    lines += ["| `infonce`, % of the photos | baseline | " + " | ".join(points(100 * level[f"acc_{radius}km"], sign=False) for radius in RADII) + " |"]
    for name in table.xs("acc_200km", level="metric")["difference"].sort_values(ascending=False, kind="stable").index:
        cells = []
        for radius in RADII:
            row = table.loc[(name, f"acc_{radius}km")]
            cells.append(f"**{interval(row, 'corrected_low', 'corrected_high')}**" if row["verdict"] in {"better", "worse"} else interval(row, "corrected_low", "corrected_high"))
        lines += [of_strategy(name, [negatives.REGISTRY[name].kind if name in negatives.REGISTRY else "option", *cells])]
    return "\n".join(lines)


def filled(page: Path) -> str:
    """The text of ``page``, each table between its marks made anew."""
    makers = {"first_screen": first_screen, "all_radii": all_radii, "all_differences": all_differences, "the_study": the_study}
    mark = re.compile(r"(<!-- table (\w+), made by docs/generate.py -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return mark.sub(lambda found: found[1] + makers[found[2]]() + found[3], page.read_text(encoding="utf-8"))


def pages() -> dict[Path, str]:
    """Every generated page, and every page with generated tables, by its path."""
    made = {"settings": settings_page(), "files": files_page(), "commands": commands_page(), "functions": functions_page()}
    with_tables = (HERE.parent / "README.md", HERE / "results.md", HERE / "study.md")
    return {HERE / "reference" / f"{name}.md": HEAD + text for name, text in made.items()} | {page: filled(page) for page in with_tables}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
