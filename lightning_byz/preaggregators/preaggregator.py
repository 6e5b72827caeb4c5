"""The interface of pre-aggregators: from the messages of one step to others, on which an aggregator does better."""

from abc import ABC, abstractmethod

import torch

from lightning_byz.rule import Rule
from lightning_byz.stack import Stack


class PreAggregator(Rule, ABC):
    """Turns a stack into a stack of the same shape. A rule of your own overrides ``__call__``, and that is enough."""

    def kappa(self, n: float, f: float, following: float | None) -> float | None:
        """The constant of robustness of this followed by a rule whose own is ``following`` at ``hands_on(f)``; None where none is known."""
        return None

    def hands_on(self, f: float) -> float:
        """What the next rule is told of ``f``, with unit weights."""
        return f

    @abstractmethod
    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        """The stack that the next rule gets."""
