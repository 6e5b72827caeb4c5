"""What every rule says of itself, and the door through which stacks enter it."""

import math
from typing import ClassVar

import torch

from lightning_byz.errors import ToleranceError
from lightning_byz.kernels import SLIVER
from lightning_byz.stack import Stack


class Rule:
    """Aggregators and pre-aggregators: class data that users, error messages and the contract suite read."""

    condition: ClassVar[str] = "no guarantee"
    """What is tolerated, for people, such as ``f < W / 2`` with ``W`` the total weight."""

    unequal_weights: ClassVar[bool] = True
    """Whether unequal weights are honoured exactly; otherwise they are refused."""

    exceptions: ClassVar[frozenset[str]] = frozenset()
    """Laws of the contract suite that the definition of this rule does not keep, by name: ``agreement``, ``breakdown``, ``permutation``,
    ``repetition``, ``scaling``, ``translation``."""

    random: ClassVar[bool] = False
    """Whether the rule draws, so that it must be given a generator."""

    uses_reference: ClassVar[bool] = False
    """Whether the rule reads ``stack.reference``; only then is the last aggregate kept from step to step."""

    def tolerates(self, weight: float, f: float) -> bool:
        """Whether ``f`` Byzantine of a total ``weight`` are within what this rule was made for.

        For a rule that takes equal weights only, both are in units of one worker's weight.
        """
        return True

    def admit(self, stack: Stack) -> Stack:
        """The stack without its unusable rows.

        Raises:
            ToleranceError: If this rule cannot tolerate ``stack.f`` of these weights.
            TooManyFaults: If more weight than ``stack.f`` is unusable.
        """
        self._require(stack)
        clean = stack.sanitised()
        if clean is not stack:
            self._require(clean)
        return clean

    def drawing(self, generator: torch.Generator | None) -> torch.Generator:
        """The generator of a rule that draws.

        Raises:
            ValueError: If there is none.
        """
        if generator is None:
            raise ValueError(
                f"{type(self).__name__} draws at random and needs a generator: rule(stack, generator=torch.Generator().manual_seed(0))"
            )
        return generator

    def _require(self, stack: Stack) -> None:
        weight, name = stack.total_weight, type(self).__name__
        if weight <= 0:
            raise ToleranceError(
                f"{name} needs at least one row of positive weight; of {len(stack.weights)} rows none has any"
            )
        unit = 1.0 if self.unequal_weights else self._unit(stack)
        if not self.tolerates(weight / unit, stack.f / unit):
            raise ToleranceError(
                f"{name} cannot tolerate f = {stack.f:g} of the total weight W = {weight:g}; it needs {self.condition}: lower f or add workers"
            )

    def _unit(self, stack: Stack) -> float:
        """The weight that each present row has."""
        present = stack.weights[stack.weights > 0]
        if bool((present - present[0]).abs().max() > SLIVER * present[0]):
            raise ToleranceError(
                f"{type(self).__name__} takes equal weights only, not {stack.weights.tolist()}; use a rule whose unequal_weights is True"
            )
        return float(present[0])


def whole(count: float) -> int:
    """The number of workers that a weight in units of one worker's touches: rounded up, but for slivers."""
    return math.ceil(count - SLIVER * max(count, 1.0))


def check_whole(name: str, value: object, *, least: int) -> None:
    """Refuse a parameter that is no whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
