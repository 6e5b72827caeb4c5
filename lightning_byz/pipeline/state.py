"""What the chain remembers between steps, as a value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_byz.estimators.estimator import Memory


@dataclass(frozen=True, eq=False)
class Carried:
    """What the rules' side carries from one taken step to the next: like the rows, all coordinates of each vector or one rank's slice of them.

    Args:
        reference: The last committed aggregate, where a rule reads it; ``None`` before the first step that was taken.
        past: Per attacker the last rows that it would have sent, oldest first, where the attack remembers them.

    """

    reference: Tensor | None = None
    past: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Carried":
        """Change each vector, in an order that is the same on every rank."""
        reference = None if self.reference is None else change(self.reference)
        return Carried(
            reference, {worker: tuple(change(row) for row in self.past[worker]) for worker in sorted(self.past)}
        )


@dataclass(frozen=True, eq=False)
class PipelineState:
    """What the chain remembers between steps, as a value.

    Args:
        step: Number of steps so far, taken or not; keys the draws of attacks and rules.
        faults: Number of steps in a row that were not taken because too much weight was broken.
        memories: The estimator's memory per local worker.
        carried: What rules and attack read of earlier steps.

    """

    step: int = 0
    faults: int = 0
    memories: Mapping[int, Memory] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)
