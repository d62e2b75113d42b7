"""What this machine is and does: device, precision, progress bars."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.method.errors import BundleError
from lib.runs import ranks
from lib.runs.files import one_line


def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> tqdm:
    """A progress bar that leaves nothing behind; redrawn every two seconds where nobody is at a terminal."""
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    pause = 0.2 if stream.isatty() else 2.0
    shown = {"leave": False, "file": stream, "mininterval": pause, "dynamic_ncols": stream.isatty()}
    return tqdm(iterable, description, total, disable=ranks.rank() > 0, **shown)


def print_anywhere() -> None:
    """Let a terminal that lacks a character show a question mark; printing would stop the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def tell(line: str) -> None:
    """Print ``line`` on a line of its own, whatever progress bar is drawn."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def note(sentence: str) -> None:
    """Print what a reader of the run must know, such as how many photos were left out."""
    tell(f"note    {sentence}")


note_once = lru_cache(maxsize=8)(note)


def find_device(wanted: str) -> torch.device:
    """The device that ``wanted`` (auto, cpu, cuda) stands for here. Does not start CUDA.

    ``auto`` that passes over a card says so, once.

    Raises:
        BundleError: CUDA is asked for, and torch cannot use it; the message has torch's own reason.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return ranks.cuda_device()
    if wanted == "cuda":
        raise BundleError(f"device=cuda: {why_no_cuda()}; or take --device cpu")
    if any(Path(sign).exists() for sign in SIGNS_OF_A_CARD):
        note_once(f"there is a card, but the processor is used: {why_no_cuda()}")
    return torch.device("cpu")


SIGNS_OF_A_CARD = ("/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")
"""Files that there are where an NVIDIA card is, whatever torch can do with it."""


@lru_cache(maxsize=1)
def why_no_cuda() -> str:
    """Why torch has no CUDA device here, in its own words."""
    try:
        torch.cuda.init()
        return "torch finds no card"
    except (RuntimeError, AssertionError) as error:
        return f"{one_line(error)}; docs/osv5m.md, Driver, says what this torch needs"


GPU = "SEMIVARIOGRAM_GPU"
"""Environment variable: what :func:`gpu` found, for the processes that this one starts."""
_ASK = """
import json, torch
card, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
(torch.ones(8, device="cuda") + 1).sum().item()
print(json.dumps({"name": card.name, "capability": [card.major, card.minor], "count": count}))
"""


def gpu() -> dict[str, Any]:
    """Name, capability and count of the GPUs that torch can use, or ``error``.

    A process of its own asks: asking takes memory, and a GPU may be for one process alone.
    """
    if GPU not in os.environ:
        done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)  # noqa: S603
        said = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        os.environ[GPU] = done.stdout.strip() if done.returncode == 0 else json.dumps({"error": said})
    return json.loads(os.environ[GPU])


def check_gpu(device: torch.device) -> None:
    """Check that ``device``, where it is a GPU, computes.

    Raises:
        BundleError: it does not: too old a card, or one that another process has for itself.
    """
    if device.type == "cuda" and "error" in (found := gpu()):
        kinds = ", ".join(torch.cuda.get_arch_list())
        raise BundleError(
            f"the GPU cannot be used: {found['error']}; this torch has code for {kinds} (docs/osv5m.md, "
            "Driver); or take --device cpu"
        )


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``; the copy to a GPU is asynchronous."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """``items``, none of them None, the next of which a thread fetches while the last is worked on."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, items, None)
            yield item


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Let torch take, where ``is_wanted``, only algorithms that give the same bits every time.

    Matters on CUDA and costs speed. An operation that has no such algorithm stops with its name.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(is_wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def cores() -> int:
    """Cores that this process may use, shared out among the ranks of this machine; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def resolved_precision(device: torch.device, precision: str) -> str:
    """What ``precision`` stands for on ``device``; auto is bfloat16 where it is native, else float32."""
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
    """Whether ``device`` has bfloat16: a CUDA device since Ampere, or a processor that says so."""
    if device.type == "cuda":
        return gpu().get("capability", [0])[0] >= 8
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine() -> dict[str, Any]:
    """Processor and its vector instructions, cores, torch's threads, memory, GPU, system, Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {
        "processor": f"{processor}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": gpu().get("name") if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
