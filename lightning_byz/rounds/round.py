"""One step of one optimizer, from the local workers' gradients to the aggregate."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.exchange import Exchange, Placement, Wire
from lightning_byz.memory import Memory, Vectors
from lightning_byz.rounds.report import Report

Key = tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Turn:
    """One worker's computation on one batch.

    Args:
        worker: Whose it is.
        key: Names all of its draws.
        point: The parameters (d,) to compute at; ``None`` where the module's are.
        visible: Whether hooks, logs, metrics and buffers see it.
        attacks: Whether :meth:`Round.poisoned` has something to do to its batch.
        seat: Which batch it gets, and whose buffers, where its worker has several of them; ``None`` for its worker's only ones.

    """

    worker: int
    key: Key
    point: Float[Tensor, " d"] | None = None
    visible: bool = True
    attacks: bool = False
    seat: int | None = None

    @property
    def sits(self) -> int:
        """The seat, which is the worker's own number for its first batch."""
        return self.worker if self.seat is None else self.seat


class Sent(NamedTuple):
    """What the turns of one local worker have left; a worker that sent nothing has none.

    Args:
        gradients: Flat, one per turn, the visible one's first, or what :meth:`Round.told` has made of them. The first lies in
            the worker's row of the wire, and all may be written to.
        used: For each parameter whether the worker used it.
        point: The parameters that it computed at, where its estimator asks for them.

    """

    gradients: Sequence[Float[Tensor, " d"]]
    used: Sequence[bool]
    point: Float[Tensor, " d"] | None = None


class Outcome(NamedTuple):
    """What became of one step.

    Args:
        vector: The whole aggregate, valid until the next step; ``None`` for a step that must not be taken.
        memory: What the next step remembers.
        report: What the step did with each worker; its ``census`` says what became of their messages.

    """

    vector: Float[Tensor, " d"] | None
    memory: Memory
    report: Report


class Round(ABC):
    """One step of one optimizer. It knows no processes but through its wire; every rank takes part in every call."""

    workers: int
    """Number of logical workers, n."""

    points: int
    """How many gradients each worker's batch is asked for; with 2, where its adopted estimate was made too."""

    adds_up: ClassVar[bool] = True
    """Whether the gradients of several batches of a worker may add up to its message."""

    silence_is_zero: ClassVar[bool] = False
    """Whether a worker whose batch has no loss sends a gradient of zeros, rather than nothing."""

    wide: ClassVar[frozenset[str]] = frozenset()
    """Stages of the rules' side that keep their dtype where that of the rows changes."""

    def slack(self, dtype: torch.dtype) -> float | None:
        """Return how far apart, in parts of its length, two computations of the same gradient may be; ``None`` where nobody computes it twice."""
        return None

    def opened(
        self, exchange: Exchange, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement
    ) -> Wire:
        """Return a wire for the messages that workers make of gradients of ``total`` coordinates."""
        return exchange.open(total, dtype=dtype, device=device, placement=placement)

    def rooms(self, wire: Wire) -> Mapping[int, Sequence[Float[Tensor, " d"]]]:
        """Return where each local worker's gradients are written, one vector per batch that it gets; workers may share them."""
        return {worker: [wire.row(worker)] for worker in wire.local}

    def told(self, worker: int, gradients: Sequence[Float[Tensor, " d"]], wire: Wire) -> Sequence[Tensor]:
        """Return what is kept until the step of a local worker's gradients, which are all there."""
        return gradients

    def wire_of(self, stage: str, wire: Wire) -> Wire:
        """Return the wire at whose coordinates the rules remember a stage: ``wire``, or that of messages of another length."""
        return wire

    def check(self, shapes: Sequence[tuple[int, ...]], *, sliced: bool) -> None:
        """Refuse parameters of these shapes; ``sliced`` where rules see slices of their coordinates."""
        return

    @abstractmethod
    def remembered(self, like: Float[Tensor, " d"]) -> Mapping[str, Vectors]:
        """Return what a worker remembers by stage, blank, for vectors as ``like``: names, shapes and dtypes are known on every rank."""

    @abstractmethod
    def realigned(
        self, remembered: Mapping[str, Vectors], realign: Callable[[Tensor, float], Tensor]
    ) -> Mapping[str, Vectors]:
        """Return what a worker remembers by stage for other parameters; ``realign`` carries a vector over and fills what is new with a number."""

    def unstepped(self, before: Memory, after: Memory) -> Memory:
        """Return what is remembered of a step whose aggregate the optimizer has not stepped on.

        Args:
            before: What was remembered before it.
            after: What is remembered if the optimizer has stepped.

        """
        return replace(before, step=after.step, faults=after.faults)

    def saved(self, memory: Memory) -> Memory:
        """Return what a file must hold of the memory."""
        return memory

    def loaded(self, memory: Memory, local: Sequence[int], device: torch.device) -> Memory:
        """Return the memory from what :meth:`saved` returned, its rules' vectors and tables still whole.

        Raises:
            ValueError: If it is of a round of another kind.

        """
        return memory

    def relaid(self, memory: Memory) -> Memory:
        """Return the memory for other parameters, once its vectors are realigned: what refers to parameters by their places is forgotten."""
        return memory

    def refuse_foreign(self, step: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Refuse to go on from what a round of another kind has counted until a step."""
        return

    def worth(self, memory: Memory) -> Sequence[float] | None:
        """Return how much each worker's buffers count in what evaluation sees; ``None`` for all alike."""
        return None

    def waiting(self, memory: Memory) -> Sequence[int]:
        """Return the workers whose last message has not been delivered yet."""
        return ()

    def computing(self, step: int) -> Sequence[int]:
        """Return the workers that compute at a step."""
        return range(self.workers)

    @abstractmethod
    def turns(self, memory: Memory, placement: Placement, position: tuple[int, ...]) -> Sequence[Turn]:
        """Return the turns that this rank's workers take at a position of the training, in order; of one worker's, the visible one last."""

    @abstractmethod
    def poisoned(self, turn: Turn, batch: Any) -> Any:
        """Return the batch on which an attacker's turn computes, from the one that its worker was given."""

    @abstractmethod
    def take(
        self,
        memory: Memory,
        sent: Mapping[int, Sent],
        wire: Wire,
        *,
        parameters: int,
        scale: float | None = None,
        diagnose: bool = False,
    ) -> Outcome:
        """Bring the workers' gradients to the rules, and return the aggregate.

        Args:
            memory: What is remembered of earlier steps.
            sent: What each local worker that computed has left.
            wire: The exchange, open for vectors of this length.
            parameters: Number of parameters, alike on all ranks.
            scale: The gradient scaler's scale, by which the gradients are divided and the aggregate is not multiplied;
                ``None`` without a scaler.
            diagnose: Whether to measure norms and distances.

        Raises:
            TooManyFaults: If this was the third step in a row that could not be taken.

        """
