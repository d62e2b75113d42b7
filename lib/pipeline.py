"""The numbered notebooks, executed in order: what run_all.sh calls. ``python -m lib.pipeline --help``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from tqdm import tqdm

from lib import lab, stages
from lib.data import backbones
from lib.method import negatives
from lib.method.errors import BundleError
from lib.runs import Run, locks, provenance, write_json, writing
from lib.runs.files import checksum, one_line, printable, refusals_named
from lib.runs.machine import check_gpu, gpu, print_anywhere
from lib.runs.provenance import read_provenance
from lib.runs.run import RECORDS
from lib.settings import PROJECT
from lib.show.pages import PICTURES_ONLY, as_a_terminal_shows, render, tidy
from lib.train import gallery

NOTEBOOKS = PROJECT / "notebooks"
PARAMETERS = ["overrides", "profile", "run_name"]
OF_THE_STUDY = {"07", "08"}
"""Notebooks that need the group ``study`` in the profile: hours of trainings."""
MOST_OF_A_SOCKETS_PATH = 70
"""Longest folder of temporary files, in characters, that leaves room for a socket's name: the system takes
about 100 in all."""


def notebooks() -> dict[str, Path]:
    """Number -> file of each notebook, in their order."""
    found = [*NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), *(PROJECT / "study").glob("[0-9][0-9]_*.ipynb")]
    return {path.name[:2]: path for path in sorted(found, key=lambda path: path.name)}


def title(notebook: Path) -> str:
    """The first heading of a notebook."""
    lines = nbformat.read(notebook, as_version=4).cells[0].source.splitlines()
    return next((line[2:].strip() for line in lines if line.startswith("# ")), notebook.stem)


def choose(only: str | None, with_study: bool = True) -> dict[str, Path]:
    """The notebooks that ``only`` ("03,05") names; where it is None all, but for those of the study without
    it.

    Raises:
        BundleError: a number has no notebook, or is of the study and the profile has none.
    """
    there = notebooks()
    if only is None:
        return {number: path for number, path in there.items() if with_study or number not in OF_THE_STUDY}
    wanted = [part.strip().zfill(2) for part in only.split(",") if part.strip()]
    if not wanted or (unknown := [number for number in wanted if number not in there]):
        said = f"there is no notebook {', '.join(unknown)}" if wanted else "names no notebook"
        raise BundleError(f"--only {only}: {said}; there are {', '.join(there)}")
    if without := [] if with_study else sorted(OF_THE_STUDY.intersection(wanted)):
        raise BundleError(
            f"--only {only}: notebook {', '.join(without)} needs the group `study`; take --profile study"
        )
    return {number: path for number, path in there.items() if number in wanted}


def check_parameters(notebook: Path) -> None:
    """Refuse a notebook whose ``parameters`` cell is not exactly what the pipeline gives; papermill would
    only warn.

    Raises:
        BundleError: no such cell, more than one, or other names in it.
    """
    import papermill

    cells = nbformat.read(notebook, as_version=4).cells
    count = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
    names = sorted(papermill.inspect_notebook(_literal(notebook))) if count == 1 else []
    if names != PARAMETERS:
        wanted, found = ", ".join(PARAMETERS), ", ".join(names) or "nothing"
        raise BundleError(
            f"{notebook.name}: needs one cell tagged `parameters` that sets {wanted}; found {count} such "
            f"cells with {found}"
        )


def execute(notebook: Path, run: Run, profile: str, overrides: Sequence[str]) -> Path:
    """Execute ``notebook`` into the run's folder, also where it fails half-way; return the executed copy.

    Raises:
        BundleError: a cell failed; the message names notebook and cell and ends with the error's last line.
    """
    import papermill
    from traitlets.config import Config

    check_parameters(notebook)
    target, log = run.folder / "notebooks" / notebook.name, run.folder / "logs" / f"{notebook.stem}.log"
    for path in (target, log):
        path.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "profile": _from_notebooks(profile),
        "run_name": _from_notebooks(str(run.folder)),
        "overrides": list(overrides),
    }
    as_far = f"the notebook as far as it got: {target}"
    try:
        with _folder_of_sockets() as sockets, log.open("w", encoding="utf-8") as said:
            papermill.execute_notebook(
                _literal(notebook), _literal(target), parameters=given, kernel_name="python3",
                cwd=str(NOTEBOOKS),
                progress_bar=False, stdout_file=said, stderr_file=said, start_timeout=600,
                config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
                # else a kernel logs the interrupt that ends it
                extra_arguments=["--Application.log_level=CRITICAL"],
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        first_line = next((line for line in error.source.splitlines() if line.strip()), "")
        last_line = (str(error.evalue).strip().splitlines() or [""])[-1]
        where = f"{notebook.name}: cell {error.exec_count} (`{first_line.strip()}`) failed"
        raise BundleError(f"{where}\n{error.ename}: {last_line}\n{as_far}") from None
    except RuntimeError as error:  # of nbclient, which knows no more than that the kernel does not answer
        died = f"its kernel died or did not start ({one_line(error)}); most often the memory did not suffice"
        raise BundleError(f"{notebook.name}: {died}\n{as_far}") from error
    finally:
        if target.exists():
            tidy(target)
        if log.exists():
            log.write_text(as_a_terminal_shows(log.read_text(encoding="utf-8")), encoding="utf-8")
    return target


def _from_notebooks(path: str) -> str:
    """``path`` from the notebooks' folder, so that an executed notebook names no machine's folders; a plain
    name as it is."""
    if not Path(path).is_absolute():
        return path
    return Path(path).name if Path(path).parent == PROJECT / "results" else os.path.relpath(path, NOTEBOOKS)


def _folder_of_sockets() -> tempfile.TemporaryDirectory[str]:
    """Where a kernel's sockets lie: a folder of this notebook's own, whose name is short enough for a
    socket's."""
    place = None if len(tempfile.gettempdir()) < MOST_OF_A_SOCKETS_PATH else "/tmp"  # noqa: S108
    return tempfile.TemporaryDirectory(prefix="semivariogram-", dir=place, ignore_cleanup_errors=True)


def _literal(path: Path) -> str:
    """``path`` for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def finish(run: Run, seconds: Mapping[str, float]) -> None:
    """Write provenance.json and index.html, and say where the run's figures stand against the reference's."""
    from lib.show import report  # matplotlib would lie in memory beside the kernels

    executed = [(path, run.folder / "notebooks" / path.name) for path in notebooks().values()]
    links = [
        {"title": title(path), "ipynb": f"notebooks/{path.name}", "html": f"notebooks/{path.stem}.html"}
        for path, copy in executed
        if copy.with_suffix(".html").exists()
    ]
    written = provenance(run, seconds) | {"outdated": outdated(run)}
    index = report.write_index(run, written, links)
    written["outputs"][index.name] = checksum(index)
    write_json(run.provenance, written)
    for stage in written["outdated"]:
        print(f"outdated: {stage} was not made with these settings, inputs and code; run all notebooks")
    if run.table("accuracy").exists():
        _say_comparison(run)
    print(f"to open in a browser: {index}")


def outdated(run: Run) -> list[str]:
    """Stages that are there, and that the run's settings, inputs and code of today would make anew: after
    ``--only``."""
    found = stages.look_up(run, notebooks())
    return [stage for _, stage, is_reused in found if not is_reused and run.receipt(stage).exists()]


def _say_comparison(run: Run) -> None:
    """Print what the comparison with the reference came to, and what was missed; every figure goes to a
    file."""
    from lib.show import report

    compared, sentence = report.compare_with_reference(run)
    if len(compared):
        path = run.folder / "logs" / "comparison.txt"
        with writing(path) as aside:
            aside.write_text(report.format_comparison(compared, sentence) + "\n", encoding="utf-8")
        sentence += f" Every figure: {path}"
    missed = compared[~compared["reproduced"].astype(bool)].head(20)
    print(report.format_comparison(missed, sentence))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the help of these options stands in run_all.sh."""
    parser = argparse.ArgumentParser("run_all.sh", epilog="What each option does: ./run_all.sh --help")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--run", default="")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--only")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.KEY=VALUE")
    for switch in ("--list", "--lab", "--fresh"):
        parser.add_argument(switch, action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 with a sentence on what went wrong and where."""
    print_anywhere()
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
            return lab.start(next(iter(chosen.values())))
        check_before_computing(run)
        with locks.holding(run.folder), refusals_named(run.folder), _environment(run):
            if options.fresh:
                forget(run.folder)
            if (count := os.environ.get("NPROC") or "1") != "1":
                make_in_parallel(run, profile, overrides, count)
            _execute_all(run, chosen, profile, overrides)
    except (BundleError, OSError) as error:
        print("run_all.sh: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun_all.sh: stopped; started again it goes on where it was", file=sys.stderr)
        return 130
    return 0


def forget(folder: Path) -> None:
    """Remove receipts and features of the run in ``folder`` and of its worlds, if there is a run."""
    own = [folder, folder / "simulation", *folder.glob("worlds/*")]
    for one in own if any(folder.glob("receipts/*.json")) else ():
        for name in ("receipts", "features"):
            if (path := one / name).is_symlink():
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)


def _of_the_caller(path: str) -> str:
    """``path`` from the folder in which run_all.sh was called; what is no path there as it is."""
    there = Path(os.environ.get("SEMIVARIOGRAM_CALLER", ""), path)
    return str(there.resolve()) if os.sep in path or there.is_file() else path


def refuse_what_would_be_ignored(options: argparse.Namespace) -> None:
    """Raise a BundleError where the command line asks for what would not be done."""
    if options.lab and (
        options.run or options.set or options.device or options.fresh or options.profile != "quick"
    ):
        where = "set profile, run_name and overrides in a notebook's first code cell"
        raise BundleError(f"--lab opens the notebooks as they are: {where}")
    if options.fresh and options.only:
        raise BundleError(
            "--fresh removes what the other notebooks made, and --only would not make it again; leave one out"
        )
    if options.only and not (options.list or options.lab) and os.environ.get("NPROC", "1") not in {"", "1"}:
        raise BundleError("NPROC makes all stages before the notebooks; leave out --only, or NPROC")


@contextmanager
def _environment(run: Run) -> Iterator[None]:
    """Variables of what the run starts: lib of this checkout, pictures as nobody moves a slider, and where
    stages are noted."""
    before = dict(os.environ)
    noted = {
        RECORDS: str(run.folder / "logs" / "stages.jsonl"),
        PICTURES_ONLY: "1",
        "PYTHONPATH": lab.python_path(),
    }
    os.environ.update(noted)
    try:
        yield
    finally:
        for name in noted:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in noted if name in before})


def make_in_parallel(run: Run, profile: str, overrides: Sequence[str], count: str) -> None:
    """Make what takes long with ``count`` processes on this machine, before the notebooks find it
    (:mod:`lib.stages`).

    Raises:
        BundleError: ``count`` is no number of processes, or one of them failed.
    """
    if not count.isdecimal() or int(count) < 1:
        raise BundleError(f"NPROC={count}: give the number of processes, such as the number of GPUs")
    cards = gpu()["count"] if run.device.type == "cuda" else int(count)
    if int(count) > cards and run.settings.training.parallel == "batches":
        raise BundleError(
            f"NPROC={count}: this machine has {cards} GPU, and with training.parallel=batches each process "
            f"needs one of its own; take NPROC={cards}, or training.parallel=trainings"
        )
    print(f"{count} processes make features and trainings …", flush=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*torchrun, "-m", "lib.stages", profile, str(run.folder), *overrides]
    # torchrun itself would give each one
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // int(count)))}
    if subprocess.run(command, cwd=PROJECT, env=threads | os.environ).returncode:  # noqa: S603
        raise BundleError(
            f"one of the {count} processes failed; its sentence, beginning with lib.stages, stands above"
        )


def check_before_computing(run: Run) -> None:
    """Find what cannot work before hours go into what can.

    Raises:
        BundleError: device, backbone, strategy or gallery is not there, or the GPU does not compute.
    """
    check_gpu(run.device)
    backbones.find(run.settings.backbone)
    if run.settings.uses_published_head:
        backbones.check_published_head(run.settings.backbone)
    for name in run.settings.training.strategies:
        negatives.get(run.settings.training.own(name)[0])
    gallery.find(run.settings.evaluation)


def _list(run: Run, chosen: Mapping[str, Path]) -> int:
    found = stages.look_up(run, chosen)
    print(run.describe())
    for number, path in chosen.items():
        print(f"{number}  {title(path)}")
        for _, stage, is_reused in (one for one in found if one[0] == number):
            print(f"      {stage:44}{'reused' if is_reused else 'made'}")
    made = sum(not is_reused for *_, is_reused in found)
    print(
        f"in all {made} of {len(found)} stages made, {len(found) - made} reused; results go to {run.folder}"
    )
    return 0


def _execute_all(run: Run, chosen: Mapping[str, Path], profile: str, overrides: list[str]) -> None:
    """Execute and render ``chosen``: two lines each, below a progress bar where somebody sits at a
    terminal."""
    print(run.describe(), flush=True)
    seconds: dict[str, float] = {}
    with suppress(BundleError):  # the first run here, or one whose provenance is damaged
        seconds |= read_provenance(run.folder)["seconds_by_notebook"]
    records = Path(os.environ[RECORDS])
    with tqdm(chosen.values(), unit="notebook", leave=False, disable=None) as bar:
        for notebook in bar:
            records.parent.mkdir(parents=True, exist_ok=True)
            records.write_text("")
            bar.write(f"{notebook.stem} …")
            started = time.perf_counter()
            with _told(bar, records):
                render(execute(notebook, run, profile, overrides))
            seconds[notebook.stem] = round(time.perf_counter() - started, 1)
            bar.write(f"      {summary(records)}; {seconds[notebook.stem]:.0f} s")
    finish(run, dict(sorted(seconds.items())))


@contextmanager
def _told(bar: tqdm, records: Path) -> Iterator[None]:
    """Every second the stage that is being made, and the time since the notebook began, beside ``bar``."""
    started, ended = time.perf_counter(), threading.Event()

    def tell() -> None:
        while not ended.wait(1.0):
            begun = [one["stage"] for one in _noted(records) if one.get("became") == "begun"]
            doing = f"{begun[-1]}, " if begun else ""
            bar.set_postfix_str(f"{doing}{time.perf_counter() - started:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        bar.set_postfix_str("")


def _noted(records: Path) -> list[dict[str, str]]:
    """What stages have noted so far; a line that is being written is left out."""
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary(records: Path) -> str:
    """What became of the stages, in a few words, and a line for whatever else they noted: ``made 1
    (features), reused 1``."""
    noted = _noted(records)
    made, reused = (
        [one["stage"] for one in noted if one.get("became") == word] for word in ("made", "reused")
    )
    shown = ", ".join(made[:3]) + (", …" if len(made) > 3 else "")
    parts = [f"made {len(made)} ({shown})"] * bool(made) + [f"reused {len(reused)}"] * bool(reused)
    sentences = [one["note"] for one in noted if "note" in one]
    return "\n      ".join([*sentences[:5], ", ".join(parts) or "drawn"])


if __name__ == "__main__":
    sys.exit(main())
