"""Tensors on their way between ranks, as bytes: values are moved, never read."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_byz.inside_torch import present_timeout

Bounds = Sequence[tuple[int, int]]


def alone() -> bool:
    """Return whether this is the only rank."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def added(counts: Tensor) -> Tensor:
    """Sum whole numbers over ranks."""
    result = counts.clone()
    if not alone():
        dist.all_reduce(result)
    return result


def others_of(bounds: Bounds, here: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Return the other ranks with their bounds, each rank starting at its neighbour so that no rank is everyone's first."""
    ranks = len(bounds)
    return ((rank, bounds[rank]) for rank in ((here + step) % ranks for step in range(1, ranks)))


def transfer(sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> Sequence[dist.Work]:
    """Start moving contiguous tensors between ranks, as bytes: values are moved, never read."""
    transfers = [
        *(dist.P2POp(dist.irecv, bytes_of(values), rank) for values, rank in received),
        *(dist.P2POp(dist.isend, bytes_of(values), rank) for values, rank in sent),
    ]
    return dist.batch_isend_irecv(transfers) if transfers else ()


def finish(works: Sequence[dist.Work]) -> None:
    """Wait for messages, as long as a collective would."""
    limit = present_timeout() if works else None
    for work in works:
        work.wait() if limit is None else work.wait(limit)


def bytes_of(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as flat bytes; of a single number torch calls any stride contiguous."""
    flat = tensor.as_strided((1,), (1,)) if tensor.numel() == 1 else tensor.view(-1)
    return flat.view(torch.uint8)
