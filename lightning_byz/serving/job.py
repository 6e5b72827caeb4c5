"""What a worker computes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class Computed(NamedTuple):
    """What a turn has left.

    Args:
        gradients: Flat (d,), one per point that the estimator asks for, the visible one first.
        used: For each parameter whether the turn used it.
        buffers: The module's buffers after it.
        loss: Of its batch.
        logged: What the turn logged, by name: a number, and flags.

    """

    gradients: Sequence[Tensor]
    used: Sequence[bool]
    buffers: np.ndarray
    loss: float
    logged: Mapping[str, Sequence[Any]]


class Job(ABC):
    """What a worker computes. It travels to its process when that starts."""

    digests: tuple[int, int]
    """Of the module and the libraries that it runs."""

    @abstractmethod
    def begin(self, turn: int) -> None:
        """Get ready, in the worker's process, to take this turn."""

    @abstractmethod
    def compute(
        self, turn: int, point: Tensor, earlier: Tensor | None, *, epoch: int, step: int, points: int
    ) -> Computed | None:
        """Return what a turn leaves at a point (d,); ``None`` where it has no loss.

        Args:
            turn: The turn's number, which keys its draws.
            point: The parameters.
            earlier: Where the second gradient is asked for.
            epoch: The Trainer's.
            step: Likewise.
            points: How many gradients are asked for.

        """

    @abstractmethod
    def settle(self, *, accepted: bool) -> None:
        """Keep what the turn has changed of the buffers, or forget it."""
