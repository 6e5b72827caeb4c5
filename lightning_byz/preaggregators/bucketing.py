"""Bucketing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_byz.kernels import minority
from lightning_byz.preaggregators.preaggregator import PreAggregator
from lightning_byz.rule import check_whole, whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Bucketing(PreAggregator):
    r"""Replace each row by the mean of a random bucket of rows.

    The workers are shuffled and cut into buckets of ``size``, the last one perhaps smaller; each gets the mean of its bucket. A bucket with one
    Byzantine worker is Byzantine as a whole, so the next rule is told ``size`` times ``f``.

    Cost: one matrix product, :math:`O(n^2 d)`.

    Args:
        size: Workers per bucket; 2 in most experiments of the paper.

    Raises:
        ValueError: If ``size`` is below 1; without a generator.
        ToleranceError: If ``size * f`` is not below half of the workers, or their weights differ. A fractional ``f`` counts as the next whole number.

    References:
        Karimireddy, He, Jaggi. Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing. ICLR 2022, arXiv 2006.09365. ``kappa`` is derived
        in docs/bounds.md; it holds for every shuffle, while the paper's gain is one in expectation.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
        >>> mixed = Bucketing()(Stack(rows, f=1), generator=torch.Generator().manual_seed(0))
        >>> mixed.vectors[:, 0].sort().values, mixed.f
        (tensor([2.5000, 2.5000, 3.5000, 3.5000, 4.5000, 4.5000]), 2.0)
    """

    size: int = 2

    condition = "size * f < n / 2"
    unequal_weights = False
    exceptions = frozenset({"permutation"})
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("size", self.size, least=1)

    def hands_on(self, f: float) -> float:
        """``size`` times ``f``, rounded up."""
        return float(self.size * whole(f))

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether the Byzantine buckets hold less than half of the workers."""
        return minority(sum(weights), self.hands_on(f))

    def kappa(self, n: float, f: float, following: float | None) -> float | None:
        """``(following + 1) (n - f) / (n - size f)`` for a whole number ``f``."""
        return None if following is None or f != round(f) else (following + 1) * (n - f) / (n - self.size * f)

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        """The stack of bucket means."""
        draws, stack = self.drawing(generator), self.admit(stack)
        present = (stack.weights > 0).nonzero()[:, 0]
        shuffled = present[torch.randperm(len(present), generator=draws, device=draws.device).to(present.device)]
        matrix = stack.weights.new_zeros(len(stack.weights), len(stack.weights))
        for bucket in shuffled.split(self.size):
            matrix[bucket[:, None], bucket] = 1.0 / len(bucket)
        unit = float(stack.weights.max())
        # opposite rows of one bucket cancel, and with them every digit of distances that follow from theirs
        return stack.mix(matrix, f=unit * self.hands_on(stack.f / unit), hand_on=False)
