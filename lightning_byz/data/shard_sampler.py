"""The order in which one worker goes through its shard."""

from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_byz.random import generator


class ShardSampler(Sampler[int]):
    """Goes through a shard over and over; where it stands is a function of the seed and the number of samples before.

    Args:
        shard: The indices of the shard.
        worker: Whose it is; keys the orders.
        length: Samples per epoch.
        shuffle: Whether each pass has an order of its own.
        seed: The run's seed.

    Example:
        >>> sampler = ShardSampler(torch.tensor([4, 6, 9]), worker=0, length=4, shuffle=False, seed=0)
        >>> list(sampler), sampler.set_epoch(1), list(sampler)
        ([4, 6, 9, 4], None, [6, 9, 4, 6])

    """

    def __init__(self, shard: Tensor, *, worker: int, length: int, shuffle: bool, seed: int) -> None:
        self.shard = shard
        self.worker = worker
        self.shuffle = shuffle
        self.seed = seed
        self._length = length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples per epoch."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch."""
        return self._between(self._epoch * self._length, (self._epoch + 1) * self._length)

    def _between(self, position: int, stop: float) -> Iterator[int]:
        """Yield the indices from one place on the way to another."""
        while position < stop:
            passes, start = divmod(position, len(self.shard))
            part = self._order(passes)[start:]
            part = part[: int(min(stop - position, len(part)))]
            yield from part.tolist()
            position += len(part)

    def _order(self, passes: int) -> Tensor:
        if not self.shuffle:
            return self.shard
        return self.shard[torch.randperm(len(self.shard), generator=generator(self.seed, "pass", passes, self.worker))]


class EndlessSampler(ShardSampler):
    """Goes on from a number of samples, without an end: for a worker that takes as many batches as it comes to.

    Example:
        >>> sampler = EndlessSampler(torch.tensor([4, 6, 9]), worker=0, length=3, shuffle=False, seed=0)
        >>> sampler.go_to(2)
        >>> [index for index, _ in zip(sampler, range(4))]
        [9, 4, 6, 9]

    """

    _start = 0

    def go_to(self, samples: int) -> None:
        """Have the next iterator go on after this many samples."""
        self._start = samples

    def __iter__(self) -> Iterator[int]:
        """Yield the indices from there on."""
        return self._between(self._start, inf)
