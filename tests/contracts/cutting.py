"""A stack cut into slices, each held by a thread; what they gather and add goes through shared memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lightning_byz.kernels import block_size
from lightning_byz.stack import Slice, Stack

Result = TypeVar("Result")


def cuts_of(total: int, count: int, seed: int) -> list[int]:
    """``count + 1`` ends of slices of whole blocks, drawn at random; slices may be empty."""
    size = block_size(total)
    blocks = -(-total // size)
    inner = torch.randint(0, blocks + 1, (count - 1,), generator=torch.Generator().manual_seed(seed)).sort().values
    return [min(end * size, total) for end in [0, *inner.tolist(), blocks]]


class Meeting:
    """Where as many threads as there are slices swap tensors."""

    def __init__(self, count: int) -> None:
        self._seats: list[Tensor | None] = [None] * count
        self._barrier = threading.Barrier(count, timeout=60)

    def swap(self, seat: int, tensor: Tensor) -> list[Tensor]:
        self._seats[seat] = tensor
        self._barrier.wait()
        everything = [seat for seat in self._seats if seat is not None]
        self._barrier.wait()
        return everything

    def abort(self) -> None:
        self._barrier.abort()


def on_slices(function: Callable[[Stack], Result], stack: Stack, ends: Sequence[int]) -> list[Result]:
    """What ``function`` returns on each slice of ``stack`` between consecutive ``ends``."""
    count, total = len(ends) - 1, stack.vectors.shape[1]
    meeting, threads = Meeting(count), torch.get_num_threads()

    def held(seat: int) -> Result:
        torch.set_num_threads(threads)
        own = Slice(
            start=ends[seat],
            stop=ends[seat + 1],
            total=total,
            gather=lambda partials: torch.cat(meeting.swap(seat, partials)),
            add=lambda counts: torch.stack(meeting.swap(seat, counts)).sum(0),
        )
        try:
            return function(Stack(stack.vectors[:, own.start : own.stop].clone(), stack.weights, stack.f, slice=own))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(held, range(count)))
