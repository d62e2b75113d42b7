"""The numbered notebooks, executed in order: what run_all.sh calls. ``python -m lib.pipeline --help``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import nbformat
import torch
from nbformat.reader import NotJSONError

from lib.data import backbones, datasets
from lib.method.errors import BundleError
from lib.runs import Run, cache, code, locks, ranks
from lib.runs.files import Signature, checksum, one_line, printable, refusals_named, signature, writing
from lib.runs.machine import check_gpu, cores, print_anywhere
from lib.runs.provenance import read_provenance, write_checksums, write_provenance
from lib.runs.run import REFERENCE
from lib.settings import PROJECT
from lib.show.pages import PICTURES_ONLY, as_a_terminal_shows, render, tidy, title
from lib.train import gallery

NOTEBOOKS = PROJECT / "notebooks"
KEPT = REFERENCE / "study"
"""Tables that notebooks of the studies read."""
STAGE_WORDS = ("made", "reused", "again")
"""First words of the lines that stages print; the second word of each is the stage's name."""


def notebooks() -> dict[str, Path]:
    """Number -> file of each notebook, in their order."""
    found = [*NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), *(PROJECT / "study").glob("[0-9][0-9]_*.ipynb")]
    return {path.name[:2]: path for path in sorted(found, key=lambda path: path.name)}


def choose(only: str | None) -> dict[str, Path]:
    """The notebooks that ``only`` ("03,05") names; where it is None, all. BundleError: one is not there."""
    there = notebooks()
    if only is None:
        return there
    wanted = {part.strip().zfill(2) for part in only.split(",")}
    if unknown := sorted(wanted - there.keys()):
        said = f"there is no notebook {', '.join(unknown)}; there are {', '.join(there)}"
        raise BundleError(f"--only {only}: {said}")
    return {number: path for number, path in there.items() if number in wanted}


def bring_up_to_date(notebook: Path, run: Run, profile: str, overrides: Sequence[str]) -> bool:
    """Execute and render ``notebook`` unless that was done with the same source, settings, code and results.

    Returns:
        True where the executed notebook was reused.
    """
    name = f"notebook-{notebook.stem}"
    known = cache.read_receipt(run, name) or {"needs": {"inputs": {}}, "outputs": {}}
    stages = [Path(one).stem for one in known["needs"]["inputs"]]
    needs = _needs_of(notebook, run, stages)
    stale = next((one for one in stages if not cache.is_current(run, one)), None)
    written = [run.folder / one for one in known["outputs"]]
    why = f"{stale} is not current" if stale else cache.why_stale(run, name, needs, written)
    if not why:
        return True
    if why != cache.NOT_MADE:
        print(f"      again: {why}", flush=True)
    started, before = time.perf_counter(), _pictures_and_pages(run)
    run.receipt(name).unlink(missing_ok=True)
    stages = execute(notebook, run, profile, overrides)
    executed = run.folder / "notebooks" / notebook.name
    pages = [executed, render(executed, [path.stem for path in notebooks().values()])]
    written = [path for path, of in _pictures_and_pages(run).items() if before.get(path) != of]
    now = _needs_of(notebook, run, stages)  # photos may have been downloaded meanwhile, the source been saved
    needs["inputs"], needs["settings"]["photos"] = now["inputs"], now["settings"]["photos"]
    cache.write_receipt(run, name, needs, pages + written, time.perf_counter() - started)
    return False


def _pictures_and_pages(run: Run) -> dict[Path, Signature]:
    """What notebooks draw, and what tells whether it was drawn again."""
    found = (path for part in ("figures", "maps") for path in (run.folder / part).glob("[!.]*"))
    return {path: signature(path) for path in found}


def _needs_of(notebook: Path, run: Run, stages: Sequence[str]) -> dict[str, Any]:
    """What an executed notebook depends on; ``stages`` are those whose results it read."""
    cells = nbformat.read(notebook, as_version=4).cells  # what a person's outputs were does not matter
    source = [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in cells]
    lines = "\n".join(text for kind, text, _ in source if kind == "code").splitlines()
    python = "\n".join(line for line in lines if not line.startswith("%"))
    templates = sorted((PROJECT / "lib" / "show" / "templates").iterdir())
    kept = sorted(KEPT.rglob("*.*")) if notebook.parent != NOTEBOOKS else []
    settings = code.needs_of_source(python) | {
        "kept": code.sha256("".join(map(checksum, kept))),
        "source": code.sha256(json.dumps(source)),
        "templates": code.sha256("".join(path.read_text(encoding="utf-8") for path in templates)),
        "settings": run.settings.model_dump(mode="json"),
        "arithmetic": run.arithmetic(run.settings.training.precision),
        "weights": backbones.weights(run.settings.backbone),
        "photos": datasets.listing(run) if run.receipt("manifest").exists() else None,
    }
    receipts = [run.receipt(one) for one in stages if run.receipt(one).exists()]
    return cache.needs_of(run.folder, receipts, settings, [render])


def execute(notebook: Path, run: Run, profile: str, overrides: Sequence[str]) -> list[str]:
    """Execute ``notebook`` into the run's folder, also where it fails half-way.

    Returns:
        The stages that it asked for.

    Raises:
        BundleError: a cell failed; the message names notebook and cell and ends with the error's last line.
    """
    import papermill
    from traitlets.config import Config

    target, log = run.folder / "notebooks" / notebook.name, run.folder / "logs" / f"{notebook.stem}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "profile": _from_notebooks(profile),
        "run_name": _from_notebooks(str(run.folder)),
        "overrides": list(overrides),
    }
    as_far, said = f"the notebook as far as it got: {target}", _Told()
    try:
        # a socket's name may have 100 characters
        place = None if len(tempfile.gettempdir()) < 70 else "/tmp"  # noqa: S108
        with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as own:
            # the kernel is of this Python, and heeds no settings of the user
            started = {"JUPYTER_PATH": "", "JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_RUNTIME_DIR": own}
            with patch.dict(os.environ, started | {"IPYTHONDIR": own}):
                papermill.execute_notebook(
                    str(notebook), str(target), parameters=given, kernel_name="python3", cwd=str(NOTEBOOKS),
                    progress_bar=False, stdout_file=said, stderr_file=said, start_timeout=600,
                    config=Config(KernelManager={"transport": "ipc", "ip": f"{own}/kernel"}),
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
        with suppress(FileNotFoundError, NotJSONError):  # papermill's own write may have failed half-way
            tidy(target)
        with writing(log) as aside:
            aside.write_text(as_a_terminal_shows(said.getvalue()), encoding="utf-8")
    return said.stages()


class _Told(io.StringIO):
    """What a kernel prints, kept; what its stages say of themselves is printed here as well, as it comes."""

    def write(self, text: str) -> int:
        """Keep ``text``; print the lines that end in it and begin with one of ``STAGE_WORDS`` or ``note``."""
        begun = self.getvalue().rpartition("\n")[2]
        *ended, _ = (begun + text).split("\n")
        for line in (one.rpartition("\r")[2] for one in ended):  # before a \r stands a progress bar
            if line.partition(" ")[0] in {*STAGE_WORDS, "note"} - {"reused"}:
                print(f"      {line}", flush=True)
        return super().write(text)

    def stages(self) -> list[str]:
        """Names of the stages that were made or reused, in their order."""
        lines = (line.split() for line in self.getvalue().splitlines())
        names = [words[1].rstrip(":") for words in lines if words[:1] and words[0] in STAGE_WORDS]
        return list(dict.fromkeys(names))


def _from_notebooks(path: str) -> str:
    """``path`` from the notebooks' folder: an executed notebook names no machine's folders."""
    if not Path(path).is_absolute():
        return path
    return Path(path).name if Path(path).parent == PROJECT / "results" else os.path.relpath(path, NOTEBOOKS)


def finish(run: Run, seconds: Mapping[str, float]) -> None:
    """Write provenance, index.html and SHA256SUMS; compare with the kept reference."""
    from lib.show import report  # matplotlib would lie in memory beside the kernels

    executed = [(path, run.folder / "notebooks" / path.name) for path in notebooks().values()]
    links = [
        {"title": title(path), "ipynb": f"notebooks/{path.name}", "html": f"notebooks/{path.stem}.html"}
        for path, copy in executed
        if copy.with_suffix(".html").exists()
    ]
    index = report.write_index(run, write_provenance(run, seconds), links)
    write_checksums(run)
    if run.table("accuracy").exists():
        _say_comparison(run)
    print(f"to open in a browser: {index}")


def _say_comparison(run: Run) -> None:
    """Print what the comparison with the reference came to; every number goes to a file."""
    from lib.show import reference

    compared, sentence = reference.compare_with_reference(run)
    if len(compared):
        with writing(path := run.folder / "logs" / "comparison.txt") as aside:
            aside.write_text(reference.format_comparison(compared, sentence) + "\n", encoding="utf-8")
        sentence += f" Every number: {path}"
    print(reference.format_comparison(compared[~compared["reproduced"].astype(bool)].head(20), sentence))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the help of these options stands in run_all.sh."""
    parser = argparse.ArgumentParser(
        "run_all.sh", epilog="What each option does: ./run_all.sh --help", allow_abbrev=False
    )
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--run", default="")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--only")
    parser.add_argument("--set", action="append", default=[], metavar="GROUP.KEY=VALUE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 with a sentence on what went wrong and where."""
    print_anywhere()
    options = parse(arguments)
    overrides = [*options.set, *([f"device={options.device}"] if options.device else [])]
    try:
        machines = _machines()
        ranks.refuse_tasks(machines.count)
        profile, name = _of_the_caller(options.profile), options.run
        run = Run.open(profile, _of_the_caller(name) if os.sep in name else name, overrides)
        chosen = choose(options.only)
        check_before_computing(run)
        # the user's own matplotlibrc would change the figures
        plain = Path(importlib.util.find_spec("matplotlib").origin).with_name("mpl-data") / "matplotlibrc"
        paths = filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])
        started = {PICTURES_ONLY: "1", "MATPLOTLIBRC": str(plain), "PYTHONPATH": os.pathsep.join(paths)}
        print(run.describe(), flush=True)
        with refusals_named(run.folder), patch.dict(os.environ, started):
            if machines.processes * machines.count > 1:  # the first of the processes holds the lock
                make_in_parallel(run, profile, overrides, machines)
            if machines.number > 0:
                print("the first machine executes the notebooks")
                return 0
            with locks.holding(run.folder):
                _execute_all(run, chosen, profile, overrides)
    except (BundleError, OSError) as error:
        print("run_all.sh: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun_all.sh: stopped; started again it goes on where it was", file=sys.stderr)
        return 130
    return 0


def _of_the_caller(path: str) -> str:
    """``path`` from the folder in which run_all.sh was called; a plain name as it is."""
    there = Path(os.environ.get("SEMIVARIOGRAM_CALLER", ""), os.path.expanduser(path))
    return str(there.resolve()) if os.sep in path or path.endswith((".yaml", ".yml")) else path


class Machines(NamedTuple):
    """How many processes work on each of how many machines, which of these this is, from 0, and where their
    torchruns meet (name:port)."""

    processes: int = 1
    count: int = 1
    number: int = 0
    meeting: str = "localhost:0"


def _machines() -> Machines:
    """What NPROC, NNODES, NODE_RANK (or Slurm's) and RDZV_ENDPOINT say. BundleError: they do not fit."""
    given = os.environ
    try:
        found = Machines(int(given.get("NPROC") or 1), int(given.get("NNODES") or 1))
        if found.count > 1:
            number = int(given.get("NODE_RANK") or given["SLURM_NODEID"])
            found = found._replace(number=number, meeting=given["RDZV_ENDPOINT"])
        if found.processes < 1 or not 0 <= found.number < found.count or ":" not in found.meeting:
            raise ValueError(", ".join(map(str, found)))
        return found
    except (KeyError, ValueError) as error:
        example = "NPROC=8 NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=node1:29500"
        raise BundleError(
            f"the number of processes or machines ({error}): give it as in {example}"
        ) from error


def make_in_parallel(run: Run, profile: str, overrides: Sequence[str], machines: Machines) -> None:
    """Make features and trainings with several processes (:mod:`lib.stages`); the notebooks then find them.
    BundleError: one of the processes failed."""
    of_all, training = machines.processes * machines.count, run.settings.training
    jobs = len(training.strategies) * len(training.seeds)
    are_few = training.parallel == "trainings" and jobs < of_all
    idle = f"; {jobs} trainings keep {jobs} of them busy" if are_few else ""
    print(f"{of_all} processes make features and trainings{idle} …", flush=True)
    meeting = ["--standalone", "--local-addr=127.0.0.1"]  # a container may not know its own name
    if machines.count > 1:
        waits = f"is_host={int(machines.number == 0)},read_timeout=600"  # the first may come late
        meeting = [f"--nnodes={machines.count}", "--rdzv-backend=c10d", f"--rdzv-id={run.name}"]
        meeting += [f"--rdzv-endpoint={machines.meeting}", f"--rdzv-conf={waits}"]
    torchrun = ["-m", "torch.distributed.run", *meeting, f"--nproc-per-node={machines.processes}"]
    command = [sys.executable, *torchrun, "-m", "lib.stages", profile, str(run.folder), *overrides]
    # torchrun itself would give each one
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // machines.processes))}
    if subprocess.run(command, cwd=PROJECT, env=threads | os.environ).returncode:  # noqa: S603
        raise BundleError(
            f"one of the {of_all} processes failed; its sentence, beginning with lib.stages, stands above or "
            "in what its machine printed. Where there is none it was killed, most often for memory: take a "
            "smaller NPROC"
        )


def check_before_computing(run: Run) -> None:
    """Find what cannot work before hours go into what can.

    Raises:
        BundleError: device, backbone or gallery is not there or no table of places; the GPU fails.
    """
    check_gpu(run.device)
    entry = backbones.find(run.settings.backbone)
    if entry.load is backbones.load_transformers and not run.features.exists():
        backbones.build(run.settings.backbone, torch.device("cpu"))  # a checkpoint comes before the photos
    if run.settings.uses_published_head:
        backbones.check_published_head(run.settings.backbone)
    gallery.find(run.settings.evaluation)
    for table in gallery.input_files(run):
        gallery.read_csv(table)


def _execute_all(run: Run, chosen: Mapping[str, Path], profile: str, overrides: list[str]) -> None:
    """Bring ``chosen`` up to date, with a line for each and for what its stages made."""
    before: dict[str, Any] = {}
    with suppress(BundleError):  # the first run here, or one whose provenance is damaged
        before = read_provenance(run.folder)
    seconds = dict(before.get("seconds_by_notebook", {}))
    for notebook in chosen.values():
        print(f"{notebook.stem} …", flush=True)
        started = time.perf_counter()
        if bring_up_to_date(notebook, run, profile, overrides):
            print("      reused: same source, settings, code and results", flush=True)
        else:
            seconds[notebook.stem] = round(time.perf_counter() - started, 1)
            print(f"      {seconds[notebook.stem]:.0f} s", flush=True)
    settings = run.settings.model_dump(mode="json")
    if chosen == notebooks() or before.get("settings", settings) == settings:
        finish(run, dict(sorted(seconds.items())))
    else:
        print("provenance.json and index.html stay: the other notebooks were executed with other settings")


if __name__ == "__main__":
    sys.exit(main())
