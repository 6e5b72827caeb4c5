"""What a worker sends instead of its raw gradient."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

Memory = dict[str, Tensor]


class Estimator(ABC):
    """A worker's estimate of the gradient, with a memory that is a value: passed in, returned, adopted by the caller.

    A memory is a dict of vectors of length d. The caller adopts the proposed memory only if the worker's row was accepted and the step was
    taken, so a non-finite gradient leaves nothing behind.
    """

    @abstractmethod
    def init(self, total: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Memory:
        """Return the memory before the first gradient, for vectors of ``total`` coordinates."""

    @abstractmethod
    def update(self, memory: Memory, gradient: Float[Tensor, " d"]) -> tuple[Float[Tensor, " d"], Memory]:
        """Return the estimate, in the gradient's dtype, and the proposed memory; mutate neither argument."""
