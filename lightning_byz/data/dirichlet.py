"""Shards of unequal labels and sizes."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from lightning_byz.data.labels import ByLabel, Labels


@dataclass(frozen=True)
class Dirichlet(ByLabel):
    r"""Give each worker a random part of each class: shards differ in labels and in size.

    For each class the parts of the n workers are drawn from :math:`\mathrm{Dir}(\alpha, \ldots, \alpha)`: near :math:`1 / n` each for a large
    :math:`\alpha`, all for one worker in the limit of a small one. A worker left with fewer than ``min_samples`` gets what it lacks from the workers
    that have most, one sample at a time.

    Args:
        alpha: Concentration, above 0; usual are 0.1 (strong skew) to 10 (nearly IID).
        min_samples: The smallest shard.
        labels: Returns the labels of the dataset, one per sample; ``None`` to look where datasets keep them.

    Raises:
        ValueError: If ``alpha`` is not above 0 or ``min_samples`` is below 1; when the run starts, if there are too few samples.

    References:
        Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification. 2019, arXiv 1909.06335, which
        draws the labels of a worker from a Dirichlet distribution.
        Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni. Bayesian Nonparametric Federated Learning of Neural Networks. ICML 2019,
        arXiv 1905.12022, which draws the workers of a label, as here.

    Example:
        >>> dataset = [(sample, sample % 2) for sample in range(100)]
        >>> shards = Dirichlet(0.3).shards(dataset, workers=3, seed=1)
        >>> [len(shard) for shard in shards], [int(sum(shard % 2)) for shard in shards]
        ([8, 45, 47], [8, 42, 0])

    """

    alpha: float
    min_samples: int = 1
    labels: Labels | None = None

    def __post_init__(self) -> None:
        """Refuse concentrations and sizes that are none."""
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be a finite number above 0, not {self.alpha!r}")
        if type(self.min_samples) is not int or self.min_samples < 1:
            raise ValueError(f"min_samples must be a whole number >= 1, not {self.min_samples!r}")

    def deal(self, classes: np.ndarray, workers: int, draws: torch.Generator) -> list[np.ndarray]:
        """Deal out class by class."""
        if len(classes) < workers * self.min_samples:
            raise ValueError(
                f"Dirichlet cannot give {workers} workers {self.min_samples} samples each: there are {len(classes)}."
            )
        shards: list[list[int]] = [[] for _ in range(workers)]
        numbers = np.random.default_rng(draws.initial_seed())
        for label in range(int(classes.max()) + 1):
            samples = np.flatnonzero(classes == label)
            samples = samples[torch.randperm(len(samples), generator=draws).numpy()]
            parts = numbers.dirichlet(np.full(workers, float(self.alpha)))
            for shard, own in zip(
                shards, np.split(samples, np.round(np.cumsum(parts)[:-1] * len(samples)).astype(int)), strict=True
            ):
                shard.extend(own.tolist())
        for shard in shards:
            while len(shard) < self.min_samples:
                shard.append(max(shards, key=len).pop())
        return [np.array(shard) for shard in shards]
