"""Every worker draws from all samples."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch

from lightning_byz.data.partition import Indices, Partition


@dataclass(frozen=True)
class Everyone(Partition):
    """Each worker goes through all samples, in orders of its own, as in the asynchronous experiments of Dahan and Levy (2024, arXiv 2501.09621).

    The data count once: an epoch has ``ceil(N / (k b))`` steps, with N samples, batches of b, and k workers computing at a step.

    Example:
        >>> [sorted(shard.tolist()) for shard in Everyone().shards(range(3), workers=2, seed=0)]
        [[0, 1, 2], [0, 1, 2]]

    """

    def indices(self, dataset: Sized, *, workers: int, worker: int, seed: int) -> Indices:
        """Return all indices."""
        return torch.arange(len(dataset))

    def samples(self, shards: Sequence[Sized]) -> int:
        """Return the number of samples, which all shards share."""
        return len(shards[0])
