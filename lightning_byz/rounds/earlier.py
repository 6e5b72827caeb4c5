"""Gradients of a batch where the worker's adopted estimate was made: passes that nobody sees."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_byz.random import Streams
from lightning_byz.rounds.aggregation import Aggregation
from lightning_byz.rounds.buffers import WorkerBuffers
from lightning_byz.rounds.round import Turn
from lightning_byz.rounds.unseen import Unseen

Batch = TypeVar("Batch")

_TWICE = (
    "an estimator with two points evaluates it twice: let the loader yield tensors or containers of them, or use an estimator with one point, such as"
    " WorkerMomentum()"
)


class EarlierGradients:
    """Each local worker's gradients at its earlier point, added up over micro-batches.

    Args:
        module: The user's module.
        buffers: The workers' buffers.
        streams: The global random streams.
        seed: The run's seed.

    """

    def __init__(self, module: nn.Module, buffers: WorkerBuffers, streams: Streams, *, seed: int) -> None:
        self._unseen = Unseen(module)
        self._buffers = buffers
        self._streams = streams
        self._seed = seed
        self._sums: dict[int, dict[int, Tensor | None]] = {}

    @contextmanager
    def computing(self, turn: Turn, aggregation: Aggregation, trained: Sequence[Tensor]) -> Iterator[None]:
        """Be where ``turn`` computes: at its point, in its random streams; a backward pass in the block reaches these gradients and no others.

        The worker's buffers are in the module already.
        """
        held, sums = [parameter.grad for parameter in trained], self._sums.get(turn.worker, {})
        for parameter in trained:
            parameter.grad = sums.get(id(parameter))
        try:
            with self._streams.inside(self._seed, *turn.key), aggregation.at(turn.point), self._unseen.after(trained):
                yield
            self._sums[turn.worker] = {id(parameter): parameter.grad for parameter in trained}
        finally:
            for parameter, gradient in zip(trained, held, strict=True):
                parameter.grad = gradient
            self._buffers.look()

    def take(self, worker: int, parameters: Sequence[Tensor]) -> list[Tensor | None] | None:
        """Return a worker's gradients since it was last asked; ``None`` without any."""
        sums = self._sums.pop(worker, None)
        return None if sums is None else [sums.get(id(parameter)) for parameter in parameters]

    def forget(self) -> None:
        """Start anew."""
        self._sums.clear()


def copied(batch: Batch, *, why: str = _TWICE) -> Batch:
    """Return a copy of a batch for a pass beside another one, each of which may change its own.

    ``why`` says what it is needed for, and what needs none.

    Raises:
        ValueError: If it cannot be copied.

    """
    try:
        return deepcopy(batch, {id(one): _clone(one) for one in _tensors(batch)})
    except Exception as error:
        raise ValueError(f"A batch of type {type(batch).__name__} cannot be copied ({error}), and {why}.") from error


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in containers; ``deepcopy`` would copy all that a view is a view of."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (tensor for one in batch.values() for tensor in _tensors(one))
    elif isinstance(batch, list | tuple):
        yield from (tensor for one in batch for tensor in _tensors(one))


def _clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
