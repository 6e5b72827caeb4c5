"""Which samples belong to which logical worker."""

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass

from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler


class Partition(ABC):
    """Splits a dataset among logical workers: one sampler per worker, the same wherever the worker runs."""

    @abstractmethod
    def sampler(self, dataset: Sized, *, workers: int, worker: int, shuffle: bool, seed: int) -> Sampler[int]:
        """Return the sampler of one worker's shard.

        Args:
            dataset: The user's dataset.
            workers: Number of logical workers.
            worker: Which of them.
            shuffle: Whether the user's loader shuffles.
            seed: The run's seed.

        """


@dataclass(frozen=True)
class IID(Partition):
    """Deal the samples out evenly, exactly as ``DistributedSampler(n, worker)`` does, padding included.

    Example:
        >>> [list(IID().sampler(range(5), workers=2, worker=worker, shuffle=False, seed=0)) for worker in (0, 1)]
        [[0, 2, 4], [1, 3, 0]]

    """

    def sampler(self, dataset: Sized, *, workers: int, worker: int, shuffle: bool, seed: int) -> Sampler[int]:
        """Return torch's own distributed sampler."""
        return DistributedSampler(dataset, num_replicas=workers, rank=worker, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
