"""The numbered notebooks, executed in order: what run_all.sh calls. ``python -m lib.pipeline --help``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import shutil
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
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbformat.reader import NotJSONError

from lib.data import backbones, datasets
from lib.method.errors import BundleError
from lib.runs import Run, cache, code, locks, ranks
from lib.runs.files import Signature, one_line, printable, refusals_named, signature, writing
from lib.runs.machine import check_gpu, gpu, print_anywhere
from lib.runs.provenance import read_provenance, write_checksums, write_provenance
from lib.settings import PROJECT
from lib.show.pages import PICTURES_ONLY, as_a_terminal_shows, render, tidy, title
from lib.train import gallery

NOTEBOOKS = PROJECT / "notebooks"
PARAMETERS = ["overrides", "profile", "run_name"]
STAGE_WORDS = ("made", "reused", "again")
"""First words of the lines that stages print; the second word of each is the stage's name."""


def notebooks() -> dict[str, Path]:
    """Number -> file of each notebook, in their order."""
    found = [*NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), *(PROJECT / "study").glob("[0-9][0-9]_*.ipynb")]
    return {path.name[:2]: path for path in sorted(found, key=lambda path: path.name)}


def choose(only: str | None) -> dict[str, Path]:
    """The notebooks that ``only`` ("03,05") names; where it is None, all.

    Raises:
        BundleError: a number has no notebook.
    """
    there = notebooks()
    if only is None:
        return there
    wanted = [part.strip().zfill(2) for part in only.split(",") if part.strip()]
    if not wanted or (unknown := [number for number in wanted if number not in there]):
        said = f"there is no notebook {', '.join(unknown)}" if wanted else "names no notebook"
        raise BundleError(f"--only {only}: {said}; there are {', '.join(there)}")
    return {number: path for number, path in there.items() if number in wanted}


def check_parameters(notebook: Path) -> None:
    """Refuse a notebook whose ``parameters`` cell is not what the pipeline gives; papermill only warns.

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


def bring_up_to_date(notebook: Path, run: Run, profile: str, overrides: Sequence[str]) -> bool:
    """Execute and render ``notebook`` unless that was done with the same source, settings, code and results.

    Returns:
        True where the executed notebook was reused.
    """
    name, known = f"notebook-{notebook.stem}", cache.read_receipt(run, f"notebook-{notebook.stem}")
    stages = [Path(one).stem for one in known["needs"]["inputs"]] if known else []
    needs = _needs_of(notebook, run, stages)
    stale = next((one for one in stages if not cache.is_current(run, one)), None)
    written = [run.folder / one for one in known["outputs"]] if known else []
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
    now = _needs_of(notebook, run, stages)  # its source may have been saved, and photos downloaded, meanwhile
    needs = needs | {
        "inputs": now["inputs"],
        "settings": needs["settings"] | {"photos": now["settings"]["photos"]},
    }
    cache.write_receipt(run, name, needs, pages + written, time.perf_counter() - started)
    return False


def _pictures_and_pages(run: Run) -> dict[Path, Signature]:
    """What notebooks draw, and what tells whether it was drawn again."""
    found = (path for part in ("figures", "maps") for path in (run.folder / part).glob("[!.]*"))
    return {path: signature(path) for path in found}


def _needs_of(notebook: Path, run: Run, stages: Sequence[str]) -> dict[str, Any]:
    """What an executed notebook depends on; ``stages`` are those whose results it read."""
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    python = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))
    templates = sorted((PROJECT / "lib" / "show" / "templates").iterdir())
    settings = code.needs_of_source(python) | {
        "source": code.sha256(notebook.read_text(encoding="utf-8")),
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

    check_parameters(notebook)
    target, log = run.folder / "notebooks" / notebook.name, run.folder / "logs" / f"{notebook.stem}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    given = {
        "profile": _from_notebooks(profile),
        "run_name": _from_notebooks(str(run.folder)),
        "overrides": list(overrides),
    }
    as_far, said = f"the notebook as far as it got: {target}", _Told()
    place = None if len(tempfile.gettempdir()) < 70 else "/tmp"  # noqa: S108 (a socket's name may have 100)
    try:
        with (
            tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as sockets,
            patch.dict(os.environ, {one: sockets for one in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}),
        ):
            papermill.execute_notebook(
                _literal(notebook), _literal(target), parameters=given, kernel_name="python3",
                cwd=str(NOTEBOOKS), progress_bar=False, stdout_file=said, stderr_file=said,
                start_timeout=600, kernel_manager_class=_OwnKernel,
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
        with suppress(FileNotFoundError, NotJSONError):  # papermill's own write may have failed half-way
            tidy(target)
        with writing(log) as aside:
            aside.write_text(as_a_terminal_shows(said.getvalue()), encoding="utf-8")
    return said.stages()


class _OwnKernel(AsyncKernelManager):
    """A kernel of this very Python: the one that a kernelspec names may be of another environment."""

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )


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


def _literal(path: Path) -> str:
    """``path`` for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--lab", action="store_true")
    options = parser.parse_args(arguments)
    if options.lab:
        parser.error("--lab takes no other option: settings stand in a notebook's first code cell")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 with a sentence on what went wrong and where."""
    print_anywhere()
    options = parse(arguments)
    overrides = [*options.set, *([f"device={options.device}"] if options.device else [])]
    try:
        count, machines = os.environ.get("NPROC") or "1", _machines()
        ranks.refuse_tasks(machines.count)
        is_alone = (count, machines.count) == ("1", 1)
        _refuse_contradictions(options, is_alone)
        profile, name = _of_the_caller(options.profile), options.run
        run = Run.open(profile, _of_the_caller(name) if os.sep in name else name, overrides)
        chosen = choose(options.only)
        check_before_computing(run)
        paths = [str(PROJECT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        paths = [os.path.abspath(one) for one in paths]  # kernels work in another folder
        started = {PICTURES_ONLY: "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        plain = Path(importlib.util.find_spec("matplotlib").origin).with_name("mpl-data") / "matplotlibrc"
        started["MATPLOTLIBRC"] = str(plain)  # else the user's own, which the figures would follow
        with refusals_named(run.folder), patch.dict(os.environ, started):
            if options.fresh and machines.number == 0:
                with locks.holding(run.folder):
                    forget(run.folder)
            if not is_alone:  # the first of the processes holds the lock
                make_in_parallel(run, profile, overrides, count, machines)
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


def forget(folder: Path) -> None:
    """Remove receipts and unfinished work of the run in ``folder``, so that all is made again."""
    receipts = folder / "receipts"
    ours = any('"needs"' in path.read_text(errors="replace") for path in receipts.glob("*.json"))
    if ours and not receipts.is_symlink():  # else it is the folder of somebody who named one that is no run
        shutil.rmtree(receipts)
    for path in folder.glob("*/unfinished*"):
        shutil.rmtree(path, ignore_errors=True)


def _of_the_caller(path: str) -> str:
    """``path`` from the folder in which run_all.sh was called; a plain name as it is."""
    there = Path(os.environ.get("SEMIVARIOGRAM_CALLER", ""), os.path.expanduser(path))
    return str(there.resolve()) if os.sep in path or path.endswith((".yaml", ".yml")) else path


class Machines(NamedTuple):
    """How many work together, which of them this is, from 0, and where their torchruns meet (name:port)."""

    count: int = 1
    number: int = 0
    meeting: str = ""


def _machines() -> Machines:
    """What NNODES, NODE_RANK (of Slurm, too) and RDZV_ENDPOINT say. BundleError: they do not fit together."""
    count, meeting = os.environ.get("NNODES") or "1", os.environ.get("RDZV_ENDPOINT", "")
    number = os.environ.get("NODE_RANK") or os.environ.get("SLURM_NODEID") or ""
    if count == "1":
        return Machines()
    if not (count + number).isdecimal() or not number or int(number) >= int(count) or ":" not in meeting:
        said = f"NNODES={count} NODE_RANK={number} RDZV_ENDPOINT={meeting}"
        mend = "the number of machines, this one's from 0, and the first one's name and a free port"
        raise BundleError(f"{said}: give {mend}, such as NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=node1:29500")
    return Machines(int(count), int(number), meeting)


def _refuse_contradictions(options: argparse.Namespace, is_alone: bool) -> None:
    if options.fresh and options.only:
        raise BundleError(
            "--fresh removes what the other notebooks made, and --only would not make it again; leave one out"
        )
    if options.only and not is_alone:
        raise BundleError("NPROC makes all stages before the notebooks; leave out --only, or NPROC")


def make_in_parallel(
    run: Run, profile: str, overrides: Sequence[str], count: str, machines: Machines
) -> None:
    """Make features and trainings with ``count`` processes a machine (:mod:`lib.stages`); the notebooks then
    find them.

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
    all_of_them, training = int(count) * machines.count, run.settings.training
    meeting = ["--standalone", "--local-addr=127.0.0.1"]  # a container may not know its own name
    jobs = len(training.strategies) * len(training.seeds)
    are_few = training.parallel == "trainings" and jobs < all_of_them
    idle = f"; {jobs} trainings keep {jobs} of them busy, the others then wait" if are_few else ""
    print(f"{all_of_them} processes make features and trainings{idle} …", flush=True)
    if machines.count > 1:
        waits = f"is_host={int(machines.number == 0)},read_timeout=600"  # the first may come late
        meeting = [f"--nnodes={machines.count}", "--rdzv-backend=c10d", f"--rdzv-id={run.name}"]
        meeting += [f"--rdzv-endpoint={machines.meeting}", f"--rdzv-conf={waits}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={count}"]
    command = [*torchrun, "-m", "lib.stages", profile, str(run.folder), *overrides]
    # torchrun itself would give each one
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // int(count)))}
    if subprocess.run(command, cwd=PROJECT, env=threads | os.environ).returncode:  # noqa: S603
        raise BundleError(
            f"one of the {all_of_them} processes failed; its sentence, beginning with lib.stages, stands "
            f"above{' or in what its machine printed' if machines.count > 1 else ''}. "
            "Where there is none it was killed, most often for memory: take a smaller NPROC"
        )


def check_before_computing(run: Run) -> None:
    """Find what cannot work before hours go into what can.

    Raises:
        BundleError: device, backbone or gallery is not there or no table of places; the GPU fails.
    """
    check_gpu(run.device)
    backbones.find(run.settings.backbone)
    if run.settings.uses_published_head:
        backbones.check_published_head(run.settings.backbone)
    gallery.find(run.settings.evaluation)
    for table in gallery.input_files(run):
        gallery.read_csv(table)


def _execute_all(run: Run, chosen: Mapping[str, Path], profile: str, overrides: list[str]) -> None:
    """Bring ``chosen`` up to date, with a line for each and for what its stages made."""
    print(run.describe(), flush=True)
    seconds: dict[str, float] = {}
    with suppress(BundleError, LookupError):  # the first run here, or one whose provenance is damaged
        seconds |= read_provenance(run.folder)["seconds_by_notebook"]
    for notebook in chosen.values():
        print(f"{notebook.stem} …", flush=True)
        started = time.perf_counter()
        if bring_up_to_date(notebook, run, profile, overrides):
            print("      reused: same source, settings, code and results", flush=True)
        else:
            seconds[notebook.stem] = round(time.perf_counter() - started, 1)
            print(f"      {seconds[notebook.stem]:.0f} s", flush=True)
    if chosen == notebooks() or not _has_other_settings(run):
        finish(run, dict(sorted(seconds.items())))
    else:
        print("provenance.json and index.html stay: the other notebooks were executed with other settings")


def _has_other_settings(run: Run) -> bool:
    """Whether the run in the folder was finished with other settings than ``run`` has."""
    with suppress(BundleError):
        return read_provenance(run.folder)["settings"] != run.settings.model_dump(mode="json")
    return False


if __name__ == "__main__":
    sys.exit(main())
