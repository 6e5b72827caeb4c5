"""Shards of few labels."""

from dataclasses import dataclass

import numpy as np
import torch

from lightning_byz.data.labels import ByLabel, Labels


@dataclass(frozen=True)
class SortedShards(ByLabel):
    """Sort the samples by label, cut them into runs of equal length, and deal each worker the same number of runs at random.

    Args:
        shards_per_worker: Runs per worker. With 1 most workers see one label or two; the paper's experiments have 2.
        labels: Returns the labels of the dataset, one per sample; ``None`` to look where datasets keep them.

    Raises:
        ValueError: If ``shards_per_worker`` is below 1; when the run starts, if there are fewer samples than runs.

    References:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from Decentralized Data. AISTATS 2017,
        arXiv 1602.05629.

    Example:
        >>> dataset = [(sample, sample % 3) for sample in range(6)]
        >>> [shard.tolist() for shard in SortedShards().shards(dataset, workers=3, seed=0)]
        [[1, 4], [2, 5], [0, 3]]

    """

    shards_per_worker: int = 1
    labels: Labels | None = None

    def __post_init__(self) -> None:
        """Refuse less than one run per worker."""
        if type(self.shards_per_worker) is not int or self.shards_per_worker < 1:
            raise ValueError(f"shards_per_worker must be a whole number >= 1, not {self.shards_per_worker!r}")

    def deal(self, classes: np.ndarray, workers: int, draws: torch.Generator) -> list[np.ndarray]:
        """Deal the runs."""
        count = workers * self.shards_per_worker
        if len(classes) < count:
            raise ValueError(
                f"SortedShards cuts {count} runs for {workers} workers, and there are {len(classes)} samples: lower shards_per_worker."
            )
        runs = np.array_split(np.argsort(classes, kind="stable"), count)
        dealt = torch.randperm(count, generator=draws).view(workers, -1).tolist()
        return [np.concatenate([runs[run] for run in own]) for own in dealt]
