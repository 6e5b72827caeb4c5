"""What every rule says of itself, and the door through which stacks enter it."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from lightning_byz.errors import ToleranceError
from lightning_byz.kernels import SLIVER, coordinate_median
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

    centred: ClassVar[bool] = False
    """Whether the rule reads ``stack.centre()``, which is then computed while rows are looked at for unusable numbers."""

    copies: ClassVar[tuple[float, float] | None] = None
    """About how long a call takes, in times of copying the stack, with compiled kernels and with torch's: 17 rows on one core of a CPU, by
    ``python benchmarks/rules.py --threads=1``; None where that is not known. It grows with the number of rows."""

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether a Byzantine weight of ``f`` among these ``weights`` is within what this rule was made for.

        Asked at every step, since the weights may change from one to the next: to be answered from these numbers alone, at once.

        Args:
            weights: The weight of each row that has any, in the order of the rows. For a rule that takes equal weights only, in units of one
                worker's weight: as many times 1.
            f: The weight that may be Byzantine, in the same units.
        """
        return True

    def admit(self, stack: Stack) -> Stack:
        """The stack without its unusable rows.

        Raises:
            ToleranceError: If this rule cannot tolerate ``stack.f`` of these weights.
            TooManyFaults: If more weight than ``stack.f`` is unusable.
        """
        self._require(stack)
        self.survey(stack)
        clean = stack.sanitised()
        if clean is not stack:
            self._require(clean)
        return clean

    def survey(self, stack: Stack) -> None:
        """Have ``stack`` find out what this rule needs while it looks for unusable rows: nothing depends on it but how often rows are read."""
        if self.centred and "nonfinite" not in stack.found and (found := stack.survey(coordinate_median)):
            stack.found["centre"] = found[0]

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
        weights, name = [weight for weight in stack.masses if weight > 0], type(self).__name__
        if not weights:
            raise ToleranceError(
                f"{name} needs at least one row of positive weight; of {len(stack.masses)} rows none has any"
            )
        if not self.unequal_weights and max(abs(weight - weights[0]) for weight in weights) > SLIVER * weights[0]:
            raise ToleranceError(
                f"{name} takes equal weights only, not {list(stack.masses)}; use a rule whose unequal_weights is True"
            )
        if not self._tolerates(weights, stack.f):
            raise ToleranceError(
                f"{name} cannot tolerate f = {stack.f:g} of the total weight W = {stack.total_weight:g}; it needs {self.condition}: "
                "lower f or add workers"
            )

    def _tolerates(self, weights: Sequence[float], f: float) -> bool:
        """What ``tolerates`` says, in its units."""
        told, f = (weights, f) if self.unequal_weights else ([1.0] * len(weights), f / weights[0])
        try:
            return self.tolerates(told, f)
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__}.tolerates(weights, f) must answer for the weights of the rows, {len(told)} numbers of which "
                f"sum(weights) is the total, and failed: {error}"
            ) from error


def whole(count: float) -> int:
    """The number of workers that a weight in units of one worker's touches: rounded up, but for slivers."""
    return math.ceil(count - SLIVER * max(count, 1.0))


def check_whole(name: str, value: object, *, least: int) -> None:
    """Refuse a parameter that is no whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
