"""Shards that are alike to a degree."""

from dataclasses import dataclass

import numpy as np
import torch

from lightning_byz.data.labels import ByLabel, Labels


@dataclass(frozen=True)
class GammaSimilarity(ByLabel):
    r"""Deal a part :math:`\gamma` of the samples out at random, and the rest sorted by label, in one block per worker.

    Worker i gets about :math:`\gamma N / n` samples drawn at random from all N, and of the others, sorted by label, the i-th of n blocks of equal
    length. Shards differ by one sample at most.

    Args:
        gamma: The part that is alike, 0 to 1: with 1 shards are IID, with 0 each worker has one label or few.
        labels: Returns the labels of the dataset, one per sample; ``None`` to look where datasets keep them.

    Raises:
        ValueError: If ``gamma`` is not from 0 to 1; when the run starts, if there are fewer samples than workers.

    References:
        Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. SCAFFOLD: Stochastic Controlled Averaging for Federated Learning. ICML 2020, arXiv 1910.06378,
        where it is "s% similarity".
        González, Guerraoui, Pinot, Rizk, Stephan, Taïani. ByzFL: Research Framework for Robust Federated Learning. 2025, arXiv 2505.24802, whose
        library has the name; its code takes the first :math:`\gamma N` samples of the dataset where these are drawn.

    Example:
        >>> dataset = [(sample, sample % 3) for sample in range(12)]
        >>> [sorted(shard.tolist()) for shard in GammaSimilarity(0).shards(dataset, workers=3, seed=0)]
        [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
        >>> [sorted(shard.tolist()) for shard in GammaSimilarity(0.5).shards(dataset, workers=3, seed=0)]
        [[0, 2, 6, 9], [1, 3, 7, 10], [4, 5, 8, 11]]

    """

    gamma: float
    labels: Labels | None = None

    def __post_init__(self) -> None:
        """Refuse what is no part of a whole."""
        if not isinstance(self.gamma, int | float) or isinstance(self.gamma, bool) or not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be a number from 0 to 1, not {self.gamma!r}")

    def deal(self, classes: np.ndarray, workers: int, draws: torch.Generator) -> list[np.ndarray]:
        """Deal what is alike, then the blocks."""
        if len(classes) < workers:
            raise ValueError(f"GammaSimilarity cannot give {workers} workers a sample each: there are {len(classes)}.")
        order = torch.randperm(len(classes), generator=draws).numpy()
        alike, rest = np.split(order, [round(self.gamma * len(classes))])
        rest = np.sort(rest)
        blocks = np.array_split(rest[np.argsort(classes[rest], kind="stable")], workers)
        parts = np.array_split(alike, workers)[
            ::-1
        ]  # whose parts are larger has not the larger block, where that can be
        return [np.concatenate(both) for both in zip(parts, blocks, strict=True)]
