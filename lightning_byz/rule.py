"""What every rule says of itself, and the door through which stacks enter it."""

from typing import ClassVar

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
    """Laws of the contract suite that the definition of this rule does not keep."""

    def tolerates(self, weight: float, f: float) -> bool:
        """Whether ``f`` Byzantine of a total ``weight`` are within what this rule was made for."""
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

    def _require(self, stack: Stack) -> None:
        weight, name = stack.total_weight, type(self).__name__
        if weight <= 0:
            raise ToleranceError(f"{name} needs at least one row of positive weight; of {len(stack.weights)} rows none has any")
        if not self.tolerates(weight, stack.f):
            raise ToleranceError(
                f"{name} cannot tolerate f = {stack.f:g} of the total weight W = {weight:g}; it needs {self.condition}: lower f or add workers"
            )
        if not self.unequal_weights:
            present = stack.weights[stack.weights > 0]
            if bool((present - present[0]).abs().max() > SLIVER * present[0]):
                raise ToleranceError(f"{name} takes equal weights only, not {stack.weights.tolist()}; use a rule whose unequal_weights is True")
