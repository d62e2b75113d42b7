"""What ranks exchange where they share the batches of one training: embeddings, gradients, losses."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lib.runs.ranks import count, rank


def mean(value: torch.Tensor) -> torch.Tensor:
    """Mean over the ranks of ``value``, of one shape on every rank; without gradient."""
    if dist.is_initialized():
        dist.all_reduce(value := value.clone())
    return value / count()


class _Gather(torch.autograd.Function):
    """Rows of all ranks; what flows back to a row is summed over the ranks. (torch's own is private.)"""

    @staticmethod
    def forward(context: object, own: torch.Tensor) -> torch.Tensor:
        """[n, ...] -> [k n, ...]."""
        parts = [torch.empty_like(own) for _ in range(count())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        """[k n, ...] -> [n, ...]."""
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # what arrives is autograd's own
        dist.all_reduce(gradient)
        return gradient.chunk(count())[rank()]


def gather(own: torch.Tensor) -> torch.Tensor:
    """Rows [k n, ...] of all k ranks, in their order, of ``own`` [n, ...] on each.

    Gradients flow to the rank that a row is from: the gradient there is that of the SUM of all ranks' losses.
    """
    return _Gather.apply(own) if dist.is_initialized() else own
