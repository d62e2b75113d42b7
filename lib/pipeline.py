"""The numbered notebooks, executed in order: what run_all.sh calls. ``python -m lib.pipeline --help``."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import nbformat
import pandas as pd
from traitlets.config import Config

from lib import lab, plan, settings
from lib.data import backbones
from lib.lab import with_this_checkout
from lib.method import negatives
from lib.method.errors import BundleError
from lib.runs import Run, locks, provenance, write_json, writing
from lib.runs.files import READING_ERRORS, checksum, one_line, printable, refusals_named
from lib.settings import PROJECT
from lib.show import explore, report
from lib.terminal import Progress
from lib.train import gallery

NOTEBOOKS = PROJECT / "notebooks"
PARAMETERS = ["profile", "run_name", "overrides"]
MOST_OF_A_SOCKETS_PATH = 70
"""Longest folder of temporary files, in characters, that leaves room for a socket's name: the system takes about 100 in all."""
DARK = """<style>@media screen and (prefers-color-scheme: dark) {
THEME
body.jp-Notebook { color-scheme: dark; background: var(--jp-layout-color0); }
.jp-RenderedImage img { border-radius: 4px; }
}</style>"""
"""What makes a page dark where its reader's screen is: JupyterLab's own colours."""
OF_THE_STUDY = {"07", "08"}
"""Notebooks that need the group ``study`` in the profile: hours of trainings, which quick does without."""


class PipelineError(BundleError):
    """The pipeline cannot go on; the message names notebook, cell and error."""


EXPECTED = (BundleError,)
"""Errors of which a user wants the sentence, and no traceback."""


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook of notebooks/."""

    path: Path

    @property
    def number(self) -> str:
        """The two digits that its name begins with."""
        return self.path.stem[:2]

    @property
    def title(self) -> str:
        """Its first heading."""
        for line in self.read().cells[0].source.splitlines():
            if line.startswith("# "):
                return line[2:].strip()
        return self.path.stem

    def read(self) -> nbformat.NotebookNode:
        """Its content."""
        return nbformat.read(self.path, as_version=4)


def notebooks() -> list[Notebook]:
    """The numbered notebooks, in order."""
    found = [*NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), *(PROJECT / "study").glob("[0-9][0-9]_*.ipynb")]
    return [Notebook(path) for path in sorted(found, key=lambda path: path.name)]


def choose(only: str | None, with_study: bool = True) -> list[Notebook]:
    """The notebooks that ``only`` ("03,05") names; where it is None all, but for those of the study without it.

    Raises:
        PipelineError: a number has no notebook, or is of the study and the profile has none.
    """
    there = {notebook.number: notebook for notebook in notebooks()}
    if only is None:
        return [one for number, one in there.items() if with_study or number not in OF_THE_STUDY]
    wanted = [part.strip().zfill(2) for part in only.split(",") if part.strip()]
    if not wanted:
        raise PipelineError(f"--only {only}: names no notebook; there are {', '.join(there)}")
    if unknown := [number for number in wanted if number not in there]:
        raise PipelineError(f"--only {only}: there is no notebook {', '.join(unknown)}; there are {', '.join(there)}")
    if without := sorted(OF_THE_STUDY.intersection(wanted)) if not with_study else []:
        raise PipelineError(f"--only {only}: notebook {', '.join(without)} needs the group `study`; take --profile study")
    return [there[number] for number in there if number in wanted]


def check_parameters(notebook: Notebook) -> None:
    """Refuse a notebook whose ``parameters`` cell is not exactly what the pipeline gives; papermill would only warn.

    Raises:
        PipelineError: no such cell, more than one, or other names in it.
    """
    import papermill

    tagged = [cell for cell in notebook.read().cells if "parameters" in cell.metadata.get("tags", [])]
    names = list(papermill.inspect_notebook(_literal(notebook.path))) if len(tagged) == 1 else []
    if sorted(names) != sorted(PARAMETERS):
        raise PipelineError(
            f"{notebook.path.name}: needs one cell tagged `parameters` that sets {', '.join(PARAMETERS)}; "
            f"found {len(tagged)} such cells with {', '.join(names) or 'nothing'}"
        )


def execute(
    notebook: Notebook, run: Run, profile: str, overrides: Sequence[str], said: TextIO | None = None
) -> Path:
    """Execute ``notebook`` into the run's folder, also where it fails half-way; return the executed copy.

    Args:
        said: gets what the notebook prints, as it prints it.

    Raises:
        PipelineError: a cell failed; the message names notebook and cell and ends with the error's last line.
    """
    import papermill

    check_parameters(notebook)
    target = run.folder / "notebooks" / notebook.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ[explore.PICTURES_ONLY] = "1"  # the kernel inherits it: nobody is there to move a slider
    os.environ["PYTHONPATH"] = with_this_checkout(os.environ)
    given = {"profile": profile, "run_name": str(run.folder), "overrides": list(overrides)}
    try:
        with _folder_of_sockets() as sockets:
            papermill.execute_notebook(
                _literal(notebook.path),
                _literal(target),
                parameters=given,
                kernel_name="python3",
                cwd=str(NOTEBOOKS),
                progress_bar=False,
                stdout_file=said,
                stderr_file=said,
                start_timeout=600,
                config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
                extra_arguments=["--Application.log_level=CRITICAL"],  # else a kernel logs the interrupt that ends it as an error
            )
    except papermill.PapermillExecutionError as error:
        first_line = next((line for line in error.source.splitlines() if line.strip()), "")
        last_line = (str(error.evalue).strip().splitlines() or [""])[-1]
        raise PipelineError(
            f"{notebook.path.name}: cell {error.exec_count} (`{first_line.strip()}`) failed\n"
            f"{error.ename}: {last_line}\nthe notebook as far as it got: {target}"
        ) from None
    except RuntimeError as error:  # of nbclient, which knows no more than that the kernel does not answer
        raise PipelineError(
            f"{notebook.path.name}: its kernel died or did not start ({one_line(error)}); most often the memory did not suffice\n"
            f"the notebook as far as it got: {target}"
        ) from error
    finally:
        if target.exists():
            tidy(target)
    return target


def _folder_of_sockets() -> tempfile.TemporaryDirectory[str]:
    """Where a kernel's sockets lie: a folder of this notebook's own, whose name is short enough for a socket's."""
    place = None if len(tempfile.gettempdir()) < MOST_OF_A_SOCKETS_PATH else "/tmp"  # noqa: S108
    return tempfile.TemporaryDirectory(prefix="semivariogram-", dir=place, ignore_cleanup_errors=True)


def _literal(path: Path) -> str:
    """``path`` for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def tidy(path: Path) -> None:
    """Leave of what each cell of an executed notebook printed what a terminal would show in the end, in one piece."""
    content = nbformat.read(path, as_version=4)
    for cell in content.cells:
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = _as_a_terminal_shows_it(output.text)
        if "outputs" in cell:
            cell.outputs = [output for output in kept if output.output_type != "stream" or output.text]
    with writing(path) as aside:
        nbformat.write(content, aside)


def _as_a_terminal_shows_it(text: str) -> str:
    """``text`` without what a carriage return overwrote, and without the empty lines that progress bars leave."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "".join(f"{line}\n" for line in lines if line)


def render(executed: Path) -> Path:
    """The executed notebook as a page beside it, formulas as MathML: nothing is fetched to show them."""
    from nbconvert import HTMLExporter

    content = nbformat.read(executed, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_mathml(cell.source)
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="", require_js_url="")
    body, _ = exporter.from_notebook_node(content)
    dark, *_ = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")
    page = executed.with_suffix(".html")
    with writing(page) as aside:
        aside.write_text(_without_fetching(body).replace("</head>", DARK.replace("THEME", dark) + "</head>", 1), encoding="utf-8")
    return page


def _with_mathml(markdown: str) -> str:
    """``markdown`` with $formulas$ and $$displayed ones$$ as MathML; code spans are left alone."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        displayed = found["display"] is not None
        mathml = convert((found["display"] or found["inline"]).strip(), display="block" if displayed else "inline")
        return f'\n\n<div style="margin: 1em 0">{mathml}</div>\n\n' if displayed else mathml

    pattern = r"(?P<code>`[^`]*`)|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$"
    return re.sub(pattern, formula, markdown, flags=re.DOTALL)


def _without_fetching(page: str) -> str:
    """``page`` without the scripts that nbconvert's template would load from a network."""
    return re.sub(r'<script[^>]*\bsrc="(https?:|")[^>]*>\s*</script>', "", page)


def finish(run: Run, seconds: dict[str, float]) -> None:
    """Write manifest.json and index.html, and say where the run's figures stand against the reference's."""
    known = {notebook.path.stem: notebook for notebook in notebooks()}
    executed = [path for path in sorted((run.folder / "notebooks").glob("*.ipynb")) if path.stem in known]
    links = [
        {
            "title": known[path.stem].title,
            "ipynb": f"notebooks/{path.name}",
            "html": f"notebooks/{path.with_suffix('.html').name}",
        }
        for path in executed
        if path.with_suffix(".html").exists()
    ]
    written = provenance(run, seconds) | {"outdated": outdated(run)}
    index = report.write_index(run, written, links)
    written["outputs"][index.name] = checksum(index)
    write_json(run.folder / "manifest.json", written)
    for stage in written["outdated"]:
        print(f"outdated: {stage} was not made with these settings, inputs and code, and was not made anew; run all notebooks")
    if run.table("accuracy").exists():
        _say_comparison(run, *report.compare_with_reference(run))
    print(f"open {index}")


def outdated(run: Run) -> list[str]:
    """Stages that are there, and of which the run's settings, inputs and code of today are not what made them: after ``--only``."""
    found = plan.steps(run, [notebook.number for notebook in notebooks()])
    return [step.stage for step in found if not step.is_reused and run.receipt(step.stage).exists()]


def _say_comparison(run: Run, compared: pd.DataFrame, sentence: str) -> None:
    """Print what the comparison with the reference came to, and what was missed; every figure goes to a file."""
    if len(compared):
        path = run.folder / "logs" / "comparison.txt"
        with writing(path) as aside:
            aside.write_text(report.format_comparison(compared, sentence) + "\n", encoding="utf-8")
        sentence += f" Every figure: {path}"
    missed = compared[~compared["reproduced"].astype(bool)].head(20)
    print(report.format_comparison(missed, sentence))


def earlier_seconds(run: Run) -> dict[str, float]:
    """Wall time by notebook that the run's manifest.json names; empty where there is none."""
    try:
        return dict(json.loads((run.folder / "manifest.json").read_text())["seconds_by_notebook"])
    except READING_ERRORS:
        return {}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the same options as run_all.sh."""
    parser = argparse.ArgumentParser("run_all.sh", description="Execute the numbered notebooks.")
    parser.add_argument(
        "--profile", default="quick", help=f"{', '.join(settings.profiles())}, or a YAML file (default: quick)"
    )
    parser.add_argument("--run", default="", help="name of the folder under results/ (default: the profile's name)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="where to compute (default: CUDA where there is one)"
    )
    parser.add_argument("--only", help="numbers of the notebooks to execute, such as 03,05")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.KEY=VALUE", help="override a setting")
    parser.add_argument(
        "--list", action="store_true", help="say what would be computed, what reused, how long it takes here; do nothing"
    )
    parser.add_argument("--lab", action="store_true", help="open JupyterLab on the notebooks instead of executing them")
    parser.add_argument("--fresh", action="store_true", help="make everything anew; photos that are there stay")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 with a sentence on what went wrong and where."""
    options = parse(arguments)
    overrides = [*options.set, *([f"device={options.device}"] if options.device else [])]
    try:
        refuse_what_would_be_ignored(options)
        profile, name = _of_the_caller(options.profile), options.run
        run = Run.open(profile, _of_the_caller(name) if os.sep in name else name, overrides)
        chosen = choose(options.only, run.settings.study is not None)
        if options.list:
            return _list(run, chosen)
        if options.lab:
            return lab.start(chosen[0].path.name)
        check_before_computing(run)
        with locks.holding(run.folder), refusals_named(run.folder):
            for path in sorted(run.folder.rglob("*")) if options.fresh else ():
                if path.name in {"receipts", "features"} and path.is_dir():
                    shutil.rmtree(path)
            if (count := os.environ.get("NPROC") or "1") != "1":
                make_in_parallel(run, profile, overrides, count)
            _execute_all(run, chosen, profile, overrides)
    except EXPECTED as error:
        print("run_all.sh: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun_all.sh: stopped; started again it goes on where it was", file=sys.stderr)
        return 130
    return 0


def _of_the_caller(path: str) -> str:
    """``path`` from the folder in which run_all.sh was called; what is no path there as it is."""
    there = Path(os.environ.get("SEMIVARIOGRAM_CALLER", ""), path)
    return str(there.resolve()) if os.sep in path or there.is_file() else path


def refuse_what_would_be_ignored(options: argparse.Namespace) -> None:
    """Raise a PipelineError where the command line asks for what would not be done."""
    if options.lab and (options.run or options.set or options.device or options.fresh or options.profile != "quick"):
        raise PipelineError("--lab opens the notebooks as they are: set profile, run_name and overrides in a notebook's first code cell")
    if options.fresh and options.only:
        raise PipelineError("--fresh removes what the other notebooks made, and --only would not make it again; leave one out")
    if options.only and not (options.list or options.lab) and os.environ.get("NPROC", "1") not in {"", "1"}:
        raise PipelineError("NPROC makes all stages before the notebooks; leave out --only, or NPROC")
    if options.run in {".", ".."}:
        raise PipelineError(f"--run {options.run}: give the folder a name of its own")


def make_in_parallel(run: Run, profile: str, overrides: Sequence[str], count: str) -> None:
    """Make what takes long with ``count`` processes on this machine, before the notebooks find it (:mod:`lib.stages`).

    Raises:
        PipelineError: ``count`` is no number of processes, or one of them failed.
    """
    if not count.isdecimal() or int(count) < 1:
        raise PipelineError(f"NPROC={count}: give the number of processes, such as the number of GPUs")
    print(f"{count} processes make features and trainings …", flush=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*torchrun, "-m", "lib.stages", profile, str(run.folder), *overrides]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // int(count)))}  # torchrun itself would give each one
    if subprocess.run(command, cwd=PROJECT, env=threads | os.environ).returncode:  # noqa: S603 - its progress and its errors go to the terminal
        raise PipelineError(f"one of the {count} processes failed; its sentence, beginning with lib.stages, stands above")


def check_before_computing(run: Run) -> None:
    """Find what cannot work before hours go into what can.

    Raises:
        ArtefactError, BackboneError, BundleError, BundleError: device, backbone, strategy or gallery is not there.
    """
    _ = run.device
    backbones.find(run.settings.backbone)
    if run.settings.uses_published_head:
        backbones.check_published_head(run.settings.backbone)
    for name in run.settings.training.strategies:
        negatives.get(run.settings.training.own(name)[0])
    gallery.find(run.settings.evaluation)


def _list(run: Run, chosen: list[Notebook]) -> int:
    print(run.describe())
    print(plan.table(run, [(notebook.path.stem, notebook.title) for notebook in chosen]))
    print(f"profiles: {', '.join(settings.profiles())}; results go to {run.folder}")
    return 0


def _execute_all(run: Run, chosen: list[Notebook], profile: str, overrides: list[str]) -> None:
    print(run.describe())
    seconds, names = earlier_seconds(run), [notebook.path.stem for notebook in chosen]
    with Progress(names, *_expected(run, names), run.folder / "logs", sys.stdout) as progress:
        for notebook in chosen:
            executed = execute(notebook, run, profile, overrides, progress.begin(notebook.path.stem))
            render(executed)
            seconds[notebook.path.stem] = round(progress.end(plan.stage_lines(executed)), 1)
    finish(run, dict(sorted(seconds.items())))


def _expected(run: Run, names: list[str]) -> tuple[dict[str, float], bool]:
    """Seconds of the notebooks, and whether they are of this machine; else those of the reference run, where one is kept."""
    found = plan.steps(run, [name[:2] for name in names])
    here = {name: plan.estimate(run, found, name) for name in names}
    if all(one.is_whole for one in here.values()):
        return {name: one.seconds for name, one in here.items()}, True
    try:
        kept = json.loads((report.REFERENCE / run.settings.profile / "manifest.json").read_text())["seconds_by_notebook"]
        return {name: kept[name] for name in names if name in kept}, False
    except READING_ERRORS:
        return {}, False


if __name__ == "__main__":
    sys.exit(main())
