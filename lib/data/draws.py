"""Random numbers of a run: one generator for each purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each ``purpose``, so that drawing more of one thing moves nothing
    else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
