"""Shards of given sizes."""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from lightning_byz.data.partition import Indices, Partition
from lightning_byz.random import generator


@dataclass(frozen=True)
class Sizes(Partition):
    """Deal the samples out at random in shards of given proportions.

    Args:
        sizes: One number above 0 per worker: the shards' sizes are in proportion to them, and equal to them if they add up to the number of samples.

    Raises:
        ValueError: If a size is not above 0; when the run starts, if there is not one per worker, or one leaves its worker without a sample.

    Example:
        >>> [len(shard) for shard in Sizes([1, 2, 7]).shards(range(50), workers=3, seed=0)]
        [5, 10, 35]

    """

    sizes: Sequence[float | int]

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        if isinstance(self.sizes, str) or not isinstance(self.sizes, Sequence) or not all(map(_is_size, self.sizes)):
            raise ValueError(f"sizes must be finite numbers above 0, one per worker, not {self.sizes!r}")

    def indices(self, dataset: Sized, *, workers: int, worker: int, seed: int) -> Indices:
        """Return the indices of one worker's shard."""
        return self.shards(dataset, workers=workers, seed=seed)[worker]

    def shards(self, dataset: Sized, *, workers: int, seed: int) -> Sequence[Indices]:
        """Return the indices of each worker's shard."""
        if len(self.sizes) != workers:
            raise ValueError(
                f"sizes={list(self.sizes)} are {len(self.sizes)} numbers for {workers} workers: give one per worker."
            )
        order, total = torch.randperm(len(dataset), generator=generator(seed, "partition")), math.fsum(self.sizes)
        ends = [0, *(round(end * len(dataset) / total) for end in accumulate(self.sizes))]
        return [order[start:stop] for start, stop in pairwise(ends)]


def _is_size(size: object) -> bool:
    return isinstance(size, int | float) and not isinstance(size, bool) and 0 < size < math.inf
