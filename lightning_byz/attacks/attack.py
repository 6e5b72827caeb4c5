"""The interface of attacks: what Byzantine workers send, and what they do to their data."""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.stack import Stack

Defence = Callable[[Stack], Tensor]


class Attack(ABC):  # noqa: B024 an attack overrides either door
    """An attack has two doors, and each does nothing until it is overridden."""

    strength: ClassVar[str | None] = None
    """The field, a number, that says how strong the attack is, for :class:`Optimized`; None where there is none."""

    @property
    def keeps(self) -> int:
        """For how many steps the rows that attackers would have sent are kept; where positive, ``replace`` gets them as ``past=``."""
        return 0

    def poison(self, batch: Any, *, generator: torch.Generator) -> Any:
        """The batch on which an attacker computes, from the one it was given."""
        return batch

    def replace(
        self, stack: Stack, attackers: Sequence[int], *, generator: torch.Generator, defence: Defence | None = None
    ) -> Float[Tensor, "m d"]:
        """What the attackers send instead of their rows.

        Args:
            stack: All rows, usable ones only; perhaps one slice of them, so coordinates must be treated alike wherever the slice is cut.
            attackers: The rows under control.
            generator: The only source of randomness.
            defence: What will make the aggregate of a stack, for attacks that try it out.

        An attack whose ``keeps`` is positive takes ``past=`` too: a dict from worker ids to the rows that this worker would have sent in the last
        ``keeps`` steps, oldest first, shorter at the start of a run.
        """
        return stack.vectors[list(attackers)]


def honest_weights(stack: Stack, attackers: Sequence[int]) -> Float64[Tensor, " n"]:
    """The weights of the stack, zero for attackers, as parts of their sum; all zero where no honest row has weight."""
    weights = stack.weights.clone()
    weights[list(attackers)] = 0.0
    total = weights.sum()
    return weights / total if bool(total > 0) else weights
