"""What this machine is and does: device, precision, random numbers, progress bars."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.method.errors import BundleError
from lib.runs import ranks


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each ``purpose``, so that drawing more of one thing moves nothing
    else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> tqdm:
    """A progress bar that leaves nothing behind once it is done; redrawn every two seconds where nobody is at
    a terminal."""
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    pause = 0.2 if stream.isatty() else 2.0
    shown = {"leave": False, "file": stream, "mininterval": pause, "dynamic_ncols": stream.isatty()}
    return tqdm(iterable, description, total, disable=ranks.rank() > 0, **shown)


def print_anywhere() -> None:
    """Let a terminal that lacks a character show a question mark; printing would stop the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def find_device(wanted: str) -> torch.device:
    """The device that ``wanted`` (auto, cpu, cuda) stands for here.

    Raises:
        BundleError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise BundleError(
            "device=cuda: this machine has no CUDA device that torch can use; take --device cpu"
        )
    return ranks.cuda_device() if available and wanted != "cpu" else torch.device("cpu")


def resolved_precision(device: torch.device, precision: str) -> str:
    """float32, bfloat16 or float16: what ``precision`` stands for on ``device``; auto is bfloat16 where it is
    native."""
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
    """Whether ``device`` multiplies bfloat16 matrices natively: a CUDA device since Ampere, or a processor
    that says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator, operating system and Python of this machine."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": _accelerator() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


@lru_cache(maxsize=1)
def _accelerator() -> str:
    """The GPU's name; asked by a process of its own: asking takes memory, and a GPU may be for one process
    alone."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    done = subprocess.run(asked, capture_output=True, text=True)  # noqa: S603
    return done.stdout.strip() or "a GPU that does not say its name"
