"""Several processes on one run. ``NPROC=8 ./run_all.sh`` starts them with torchrun, ``NNODES`` on machines.

A process that torchrun did not start is rank 0 of 1, and none of this does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lib.method.errors import BundleError
from lib.runs.files import one_line

MEETING = timedelta(minutes=10)
"""How long ranks look for one another."""
PATIENCE = timedelta(days=7)
"""How long a rank that has met the others waits for them: rank 0 may be downloading."""


def start() -> None:
    """Join the group that torchrun has started. Tensors on GPUs go by nccl, all else by gloo.

    Raises:
        BundleError: the processes do not find one another within ``MEETING``; or see :func:`refuse_tasks`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        refuse_tasks()
        return
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, number, of = next(dist.rendezvous("env://", timeout=MEETING))
        dist.init_process_group(backend, store=store, rank=number, world_size=of, timeout=MEETING)
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"the processes did not meet at {os.environ.get('MASTER_ADDR')} within {MEETING}: give torchrun "
            f"a name or address that all of them reach (--local-addr); {one_line(error)}"
        ) from error
    store.set_timeout(PATIENCE)
    dist.set_timeout(PATIENCE)


def refuse_tasks(machines: int = 1) -> None:
    """Refuse to be one of several tasks of srun or mpirun, other than a torchrun on each of ``machines``.

    Such tasks know nothing of one another. What sbatch sets for its own script, SLURM_NTASKS, tells less.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if (tasks := os.environ.get(name, "1")) not in ("1", str(machines)):
            raise BundleError(
                f"{name}={tasks}: each of these {tasks} tasks would think that it is alone; start one task a "
                f"machine with NPROC and NNODES={tasks} set for run_all.sh, as slurm/osv5m.sbatch does"
            )


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def cuda_device() -> torch.device:
    """The GPU of this process: ranks on one machine share its GPUs out."""
    if not dist.is_initialized():
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)  # else pinned memory would hold a piece of the first GPU for every rank
    return device


def per_card() -> int:
    """How many ranks of this machine share one of its GPUs, at most."""
    return -(-int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // max(1, torch.cuda.device_count()))


def wait() -> None:
    """Wait until every rank is here. BundleError: one has ended, or did not come within ``PATIENCE``."""
    try:
        if dist.is_initialized():
            dist.barrier()
    except RuntimeError as error:
        said = f"another process has ended, or did not come within {PATIENCE}; see what it said"
        raise BundleError(f"{said} ({one_line(error)})") from error


def in_turn(work: Callable[[], object]) -> None:
    """Let rank 0 do ``work``, then all others at once: they find it done."""
    if rank() == 0:
        work()
    wait()
    if rank() > 0:
        work()


def from_first(value: Any) -> Any:
    """What rank 0 gives as ``value``, on every rank."""
    told = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    return told[0]
