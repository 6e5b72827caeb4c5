"""An aggregator as a user writes it: a class in a file of their own, with ``__call__`` and nothing else."""

from torch import Tensor

from lightning_byz import Stack
from lightning_byz.aggregators import Aggregator


class OwnAverage(Aggregator):
    """Average the messages."""

    def __call__(self, stack: Stack, *, generator: object = None) -> Tensor:
        """Return the mean over workers."""
        return stack.vectors.mean(0)
