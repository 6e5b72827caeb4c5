"""Which samples belong to which logical worker."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

from lightning_byz.data.shard_sampler import EndlessSampler, ShardSampler

Indices = Sequence[int] | np.ndarray | Tensor


class Partition(ABC):
    """Splits a dataset among logical workers, alike wherever they run. One of your own overrides ``indices``, and that is enough.

    An epoch has ``ceil(N / (n b))`` steps, with N the samples of all shards and b the batch size (rounded down with ``drop_last``). In each of them
    every worker gets a full batch: it goes through its shard over and over, across epochs, in a new order on each pass if the loader shuffles. A
    worker with a small shard so sees its samples more often, and a batch may hold the end of one pass and the start of the next. Where a batch has
    room for the samples of all shards, it is the worker's whole shard instead, once: steps on whole gradients, one per epoch (workers that do not all
    compute at each step get full batches as ever).
    """

    @abstractmethod
    def indices(self, dataset: Sized, *, workers: int, worker: int, seed: int) -> Indices:
        """Return the indices of one worker's shard.

        Args:
            dataset: The user's dataset.
            workers: Number of logical workers.
            worker: Which of them.
            seed: The run's seed, the only source of randomness.

        """

    def shards(self, dataset: Sized, *, workers: int, seed: int) -> Sequence[Indices]:
        """Return the indices of each worker's shard."""
        return [self.indices(dataset, workers=workers, worker=worker, seed=seed) for worker in range(workers)]

    def samples(self, shards: Sequence[Sized]) -> int:
        """Return how many samples make an epoch: those of all shards."""
        return sum(map(len, shards))

    def endless(
        self, dataset: Sized, *, workers: int, shuffle: bool, seed: int
    ) -> tuple[Sequence[EndlessSampler], int]:
        """Return each worker's sampler without epochs, for workers that take unequal numbers of batches, and the samples of an epoch."""
        shards = self._shards(dataset, workers, seed)
        samplers = [
            EndlessSampler(shard, worker=worker, length=len(shard), shuffle=shuffle, seed=seed)
            for worker, shard in enumerate(shards)
        ]
        return samplers, self.samples(shards)

    def samplers(
        self, dataset: Sized, *, workers: int, shuffle: bool, seed: int, batch_size: int = 1, drop_last: bool = False
    ) -> Sequence[Sampler[int]]:
        """Return each worker's sampler.

        Args:
            dataset: The user's dataset.
            workers: Number of logical workers.
            shuffle: Whether the user's loader shuffles.
            seed: The run's seed.
            batch_size: Samples per worker and step.
            drop_last: Whether the user's loader drops an incomplete batch.

        Raises:
            ValueError: If a shard is empty or holds what is no index.

        """
        shards = self._shards(dataset, workers, seed)
        samples = self.samples(shards)
        steps, whole = samples / (workers * batch_size), batch_size >= samples and not drop_last
        length = (math.floor(steps) if drop_last else math.ceil(steps)) * batch_size
        return [
            ShardSampler(shard, worker=worker, length=len(shard) if whole else length, shuffle=shuffle, seed=seed)
            for worker, shard in enumerate(shards)
        ]

    def _shards(self, dataset: Sized, workers: int, seed: int) -> list[Tensor]:
        """Return the indices of each worker's shard, checked."""
        shards = self.shards(dataset, workers=workers, seed=seed)
        return _checked(type(self).__name__, shards, samples=len(dataset), workers=workers)


@dataclass(frozen=True)
class IID(Partition):
    """Deal the samples out evenly, exactly as ``DistributedSampler(n, worker)`` does, padding included.

    Example:
        >>> [list(sampler) for sampler in IID().samplers(range(5), workers=2, shuffle=False, seed=0)]
        [[0, 2, 4], [1, 3, 0]]

    """

    def indices(self, dataset: Sized, *, workers: int, worker: int, seed: int) -> Indices:
        """Return every n-th sample; with a loader that shuffles, this holds for a new order of all samples in each epoch."""
        return list(_distributed(dataset, workers, worker, shuffle=False, seed=seed))

    def samplers(
        self, dataset: Sized, *, workers: int, shuffle: bool, seed: int, batch_size: int = 1, drop_last: bool = False
    ) -> Sequence[Sampler[int]]:
        """Return torch's own distributed samplers."""
        return [_distributed(dataset, workers, worker, shuffle=shuffle, seed=seed) for worker in range(workers)]


def _distributed(dataset: Sized, workers: int, worker: int, *, shuffle: bool, seed: int) -> DistributedSampler:
    return DistributedSampler(dataset, num_replicas=workers, rank=worker, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]


def _checked(name: str, shards: Sequence[Indices], *, samples: int, workers: int) -> list[Tensor]:
    if len(shards) != workers:
        raise ValueError(f"{name} makes {len(shards)} shards for {workers} workers: return one per worker.")
    result = [torch.as_tensor(shard if isinstance(shard, np.ndarray | Tensor) else list(shard)) for shard in shards]
    if empty := [worker for worker, shard in enumerate(result) if shard.numel() == 0]:
        raise ValueError(
            f"{name} leaves workers {empty} with an empty shard: give each worker at least one of the {samples} samples."
        )
    for worker, shard in enumerate(result):
        if shard.ndim != 1 or shard.dtype.is_floating_point or shard.dtype in (torch.bool, torch.complex64):
            raise ValueError(
                f"{name} gives worker {worker} a shard of shape {tuple(shard.shape)} and {shard.dtype}: return a list of whole numbers."
            )
        if outside := shard[(shard < 0) | (shard >= samples)].tolist():
            raise ValueError(
                f"{name} gives worker {worker} the sample {outside[0]}, and the dataset has samples 0 to {samples - 1}."
            )
    return [shard.to(torch.int64) for shard in result]
