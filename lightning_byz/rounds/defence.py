"""The rules of one optimizer's steps, and what they may assume of the workers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.kernels import saturate
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import generator
from lightning_byz.rounds.checks import check_stack, check_vector, unwritten
from lightning_byz.rounds.weights import heaviest
from lightning_byz.slice import Slice
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Defence:
    """Pre-aggregators and aggregator, f, and how much each worker counts.

    Args:
        workers: Number of logical workers, n.
        f: How many of them, whoever they are, may be Byzantine.
        aggregator: The robust rule.
        preaggregators: Rules applied before it, in order.
        weights: How much each worker counts; ``None`` for all alike.
        seed: Keys every draw.
        optimizer: Which optimizer's steps these are; keys every draw too.
        share: The part of the weight that may be Byzantine, where that is stated; ``None`` where ``f`` says it.

    """

    workers: int
    f: float
    aggregator: Aggregator
    preaggregators: Sequence[PreAggregator] = ()
    weights: Sequence[float] | None = None
    seed: int = 0
    optimizer: int = 0
    share: float | None = None

    @property
    def f_weight(self) -> float:
        """The weight that may be Byzantine while all workers are there."""
        return self.tolerated()

    def tolerated(self, absent: Sequence[int] = ()) -> float:
        """Return the weight that may be Byzantine: what any f of the workers that are there weigh at most."""
        if self.share is not None:
            return self.share * self.weight([worker for worker in range(self.workers) if worker not in absent])
        if self.weights is None:
            return float(self.f)
        return heaviest([weight for worker, weight in enumerate(self.weights) if worker not in absent], self.f)

    @property
    def uses_reference(self) -> bool:
        """Whether some rule reads the last aggregate."""
        return any(rule.uses_reference for rule in (*self.preaggregators, self.aggregator))

    def weight(self, workers: Sequence[int]) -> float:
        """Return how much some workers count together."""
        return float(len(workers)) if self.weights is None else sum(self.weights[worker] for worker in workers)

    def stack(
        self,
        vectors: Float[Tensor, "n s"],
        *,
        slice: Slice | None = None,
        reference: Tensor | None = None,
        absent: Sequence[int] = (),
    ) -> Stack:
        """Return the stack that rules see: with the workers' weights, f in their units, and the last aggregate if some rule reads it."""
        known, f = reference if self.uses_reference else None, self.tolerated(absent)
        return Stack(vectors, self.weights, f, reference=known, slice=slice)

    def check(self) -> None:
        """Run the rules on a matrix of n rows and one column, as on a first step and as on a later one.

        Raises:
            ToleranceError: If a rule cannot tolerate f.
            ValueError: If the aggregator returns something else than a finite vector, or writes to the rows.

        """
        rows, first = torch.linspace(-1.0, 1.0, self.workers).unsqueeze(1), torch.zeros(1)
        for reference in (None, first) if self.uses_reference else (None,):
            if not bool(self.aggregate(self.stack(rows, reference=reference), step=0)[0].isfinite().all()):
                raise ValueError(
                    f"{type(self.aggregator).__name__} returned values that are not finite from rows between -1 and 1."
                )

    def aggregate(self, stack: Stack, *, step: int) -> tuple[Float[Tensor, " s"], Tensor | None]:
        """Run pre-aggregators and aggregator; return the aggregate, and each row's coefficient in it where there is one."""
        device = stack.vectors.device
        for place, preaggregator in enumerate(self.preaggregators):
            draw = generator(self.seed, self.optimizer, "preaggregator", place, step, device=device)
            held = {"stack.vectors": [stack.vectors], "stack.reference": [stack.reference]}
            with unwritten(type(preaggregator).__name__, held):
                mixed = preaggregator(stack, generator=draw)
            check_stack(type(preaggregator).__name__, mixed, like=stack)
            stack = mixed
        name, draw = (
            type(self.aggregator).__name__,
            generator(self.seed, self.optimizer, "aggregator", step, device=device),
        )
        with unwritten(name, {"stack.vectors": [stack.vectors], "stack.reference": [stack.reference]}):
            vector, coefficients = self.aggregator.explain(stack, generator=draw)
        check_vector(name, vector, coordinates=stack.vectors.shape[1])
        if vector.dtype != stack.vectors.dtype:
            vector = saturate(vector.double(), stack.vectors.dtype)
        return vector, coefficients

    def kappa(self, stack: Stack) -> float | None:
        """Return what the rules together promise for the weights and f of a stack that they tolerate; ``None`` for nothing known."""
        unit = max(stack.masses)
        return _kappa([*self.preaggregators, self.aggregator], stack.total_weight / unit, stack.f / unit)

    def tried(self, stack: Stack, *, step: int, reference: Tensor | None) -> Float[Tensor, " s"]:
        """Return what would be made of a stack that an attack tries out."""
        known = stack if stack.reference is not None or not self.uses_reference else replace(stack, reference=reference)
        return self.aggregate(known, step=step)[0]


def _kappa(chain: Sequence[PreAggregator | Aggregator], n: float, f: float) -> float | None:
    """Return what a chain of rules promises; in units of one worker's weight, in which rules for equal weights count."""
    first, *rest = chain
    if isinstance(first, Aggregator):
        return first.kappa(n, f)
    return first.kappa(n, f, _kappa(rest, n, first.hands_on(f)))
