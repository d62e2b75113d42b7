"""A run: one folder under results/, the settings that fill it, and where its files lie."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib import settings as settings_module
from lib.method.errors import BundleError
from lib.runs.files import READING_ERRORS
from lib.runs.machine import autocast, find_device, gpu, machine, resolved_precision
from lib.runs.provenance import FILE, read_provenance
from lib.settings import PROJECT, Settings, file_name

RESULTS = PROJECT / "results"
REFERENCE = RESULTS / "reference"
"""Tables, figures and provenance of runs of ours, kept in git."""


def _file(name: str, meaning: str) -> property:
    """The path of a file of a run, which holds what ``meaning`` says."""
    return property(lambda run: run.folder / name, doc=meaning)


@dataclass(frozen=True)
class Run:
    """One folder under results/ and the settings that fill it.

    Attributes:
        settings: everything that the run depends on.
        folder: where its files lie.
    """

    settings: Settings
    folder: Path

    @classmethod
    def open(cls, profile: str | Path = "quick", name: str = "", overrides: Sequence[str] = ()) -> Run:
        """The run ``name`` (default: the profile's name; with a slash: a folder) under ``profile``.

        Raises:
            BundleError: see :func:`lib.settings.load`; no file's name; or a folder that is not its alone.
        """
        loaded = settings_module.load(profile, overrides)
        name = os.path.expanduser(name or loaded.profile)
        folder = Path(os.path.abspath(name if os.sep in name else RESULTS / file_name(name)))
        shared = {RESULTS, RESULTS.resolve(), REFERENCE, PROJECT, *PROJECT.parents}
        if {folder, folder.resolve()} & shared:
            raise BundleError(f"run {name!r}: {folder} holds more than one run; give it a name of its own")
        return cls(loaded, folder)

    @classmethod
    def finished(cls, folder: Path) -> Run:
        """The finished run in ``folder``, with the settings that its provenance names. BundleError: it has
        none, or one of another version."""
        written = read_provenance(folder)
        try:
            return cls(Settings.model_validate(written["settings"]), folder.resolve())
        except READING_ERRORS as error:
            raise BundleError(
                f"{folder / FILE}: its settings are not of this version; run run_all.sh again"
            ) from error

    manifest = _file("manifest.parquet", "Photos, one row each (parquet).")
    features = _file("features/features.npy", "Frozen features [N, D], row i of the manifest's row i (npy).")
    views = _file("features/views.npy", "Features of augmented views of the training photos [V, n, D] (npy).")
    semivariogram = _file("semivariogram.json", "The fitted model (JSON).")
    empirical = _file("semivariogram/empirical.npz", "The empirical semivariogram's sums (npz).")
    predictions = _file("predictions.parquet", "One row a photo, strategy and seed (parquet).")
    provenance = _file(FILE, "Settings, versions, machine, commit, times (JSON).")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def _in(self, folder: str, name: str) -> Path:
        return self.folder / folder / file_name(name, 200)

    def checkpoint(self, strategy: str, seed: int) -> Path:
        """Trained weights (safetensors)."""
        return self._in("checkpoints", f"{strategy}_seed{seed}.safetensors")

    def history(self, strategy: str, seed: int) -> Path:
        """Loss, accuracy and weights during a training (CSV)."""
        return self._in("history", f"{strategy}_seed{seed}.csv")

    def table(self, name: str) -> Path:
        """The table ``name`` (CSV)."""
        return self._in("tables", f"{name}.csv")

    def figure(self, name: str) -> Path:
        """The figure ``name`` (PNG; as PDF beside it)."""
        return self._in("figures", f"{name}.png")

    def map(self, name: str) -> Path:
        """The map ``name``, a page that needs no network."""
        return self._in("maps", f"{name}.html")

    def receipt(self, stage: str) -> Path:
        """What is known about a finished stage (JSON)."""
        return self._in("receipts", f"{stage}.json")

    @property
    def device(self) -> torch.device:
        """The device that ``settings.device`` stands for here. BundleError: there is no CUDA."""
        return find_device(self.settings.device)

    @property
    def adding_device(self) -> torch.device:
        """The device that adds up pairs: the processor where ``settings.deterministic``."""
        return torch.device("cpu") if self.settings.deterministic else self.device

    def describe(self) -> str:
        """What a reader of a notebook wants to know first, in three lines; a fourth about the GPU."""
        settings, training = self.settings, self.settings.training
        seeds = ", ".join(map(str, training.seeds))
        said = [
            f"run {self.name} (profile {settings.profile}): {settings.dataset.name}, "
            f"{settings.backbone.name}",
            f"training on {self.arithmetic(training.precision)}: {', '.join(training.strategies)}; seeds "
            f"{seeds}; {training.epochs} epochs of batches of {training.batch_size}",
            f"torch {torch.__version__}, Python {platform.python_version()}, {machine()['processor']}",
        ]
        if self.device.type != "cpu":
            found = {"count": 0, "name": "a GPU that cannot be used"} | gpu()
            said.append(f"{found['count']} x {found['name']}, CUDA {torch.version.cuda}")
        return "\n".join(said)

    def autocast(self, precision: str) -> torch.autocast:
        """Context in which networks run in ``precision`` on the run's device, see :func:`autocast`."""
        return autocast(self.device, precision)

    def arithmetic(self, precision: str) -> str:
        """Device and precision that ``precision`` comes to here, such as ``cpu/bfloat16``: part of keys."""
        device = self.device.type
        strict = "/deterministic" if self.settings.deterministic and device == "cuda" else ""
        return f"{device}/{resolved_precision(self.device, precision)}{strict}"
