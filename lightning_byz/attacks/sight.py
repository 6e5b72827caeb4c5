"""What attackers see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.stack import Stack

Defence = Callable[[Stack], Tensor]


@dataclass(frozen=True, eq=False)
class Sight:
    """What attackers see at one step, and make their rows of.

    Args:
        stack: All rows, usable ones only; perhaps one slice of them, so coordinates must be treated alike wherever the slice is cut.
        attackers: The rows under control.
        generator: The only source of randomness.
        defence: What will make the aggregate of a stack, for attacks that try it out; None where it is not known.
        past: By worker id, the rows that an attacker would have sent in the last steps, as many as the attack ``remembers``, oldest first, and fewer
            at the start of a run; cut as ``stack`` is. Empty for an attack that remembers none.
        ages: For each row the steps since it was computed, all 0 where every worker computes at every step; empty where nobody said.
        step: Number of the step, from 0.
        mirrors: Under a link that keeps vectors at both ends (``EF21``, ``Diana``), that of each worker before this step, as the rules have it:
            a worker's row minus its mirror is what it compresses. None otherwise.

    Example:
        >>> sight = Sight(Stack(torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]])), [2], torch.Generator())
        >>> sight.own, sight.honest_weights
        (tensor([[9., 9.]]), tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64))
    """

    stack: Stack
    attackers: Sequence[int]
    generator: torch.Generator
    defence: Defence | None = None
    past: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    ages: Sequence[int] = ()
    step: int = 0
    mirrors: Float[Tensor, "n d"] | None = None

    @property
    def own(self) -> Float[Tensor, "m d"]:
        """What the attackers would have sent, one row for each; a copy."""
        return self.stack.vectors[list(self.attackers)]

    @property
    def honest_weights(self) -> Float64[Tensor, " n"]:
        """The weights of the stack, zero for attackers, as parts of their sum; all zero where no honest row has weight."""
        weights = self.stack.weights.clone()
        weights[list(self.attackers)] = 0.0
        total = weights.sum()
        return weights / total if bool(total > 0) else weights
