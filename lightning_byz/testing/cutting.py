"""A stack cut into slices, each held by a thread; what they gather and add goes through shared memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lightning_byz.blocks import block_size
from lightning_byz.stack import Slice, Stack
from lightning_byz.testing.case import Broken

Result = TypeVar("Result")
_PATIENCE = 30  # seconds until slices that wait for each other are given up


def cuts_of(total: int, count: int, generator: torch.Generator) -> list[int]:
    """``count + 1`` ends of slices of whole blocks, drawn at random; slices may be empty."""
    size = block_size(total)
    blocks = -(-total // size)
    inner = torch.randint(0, blocks + 1, (count - 1,), generator=generator).sort().values
    return [min(end * size, total) for end in [0, *inner.tolist(), blocks]]


class Meeting:
    """Where as many threads as there are slices swap tensors."""

    def __init__(self, count: int) -> None:
        self._seats: list[Tensor | None] = [None] * count
        self._barrier = threading.Barrier(count, timeout=_PATIENCE)
        self._gone = False

    def swap(self, seat: int, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensors, in the order of the seats."""
        if self._gone:
            raise threading.BrokenBarrierError
        self._seats[seat] = tensor
        self._barrier.wait()
        everything = [seat for seat in self._seats if seat is not None]
        self._barrier.wait()
        return everything

    def leave(self) -> None:
        """Go for good; who waits now, or comes later, waits in vain."""
        self._gone = True
        if self._barrier.n_waiting:
            self._barrier.abort()

    def abort(self) -> None:
        """Let nobody wait any longer."""
        self._barrier.abort()


def on_slices(function: Callable[[Stack], Result], stack: Stack, ends: Sequence[int]) -> list[Result]:
    """What ``function`` returns on each slice of ``stack`` between consecutive ``ends``."""
    count, meeting, threads = len(ends) - 1, Meeting(len(ends) - 1), torch.get_num_threads()

    def held(seat: int) -> Result | Exception:
        torch.set_num_threads(threads)
        try:
            result = function(_part(stack, ends, seat, meeting))
        except Exception as error:
            meeting.abort()
            return error
        meeting.leave()
        return result

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(held, range(count)))
    return _results(results)


def _part(stack: Stack, ends: Sequence[int], seat: int, meeting: Meeting) -> Stack:
    start, stop = ends[seat], ends[seat + 1]
    own = Slice(
        start=start,
        stop=stop,
        total=stack.vectors.shape[1],
        gather=lambda partials: torch.cat(meeting.swap(seat, partials)),
        add=lambda counts: torch.stack(meeting.swap(seat, counts)).sum(0),
    )
    reference = None if stack.reference is None else stack.reference[start:stop].clone()
    return Stack(stack.vectors[:, start:stop].clone(), stack.weights.clone(), stack.f, reference, slice=own)


def _results(results: list) -> list:
    """The results, or the error that came first in rank and is not only somebody else's."""
    errors = [error for error in results if isinstance(error, Exception)]
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if own:
        raise own[0]
    if errors:
        raise Broken(
            "slices waited for each other: each must call the arithmetic across coordinates equally often and in the same order"
        )
    return results
