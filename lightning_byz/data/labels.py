"""The labels of a dataset, without reading its samples where that can be avoided, and partitions by label."""

from abc import abstractmethod
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_byz.data.partition import Indices, Partition
from lightning_byz.random import generator

Labels = Callable[[Any], Any]


class ByLabel(Partition):
    """A partition that looks at labels only: it overrides ``deal`` instead."""

    labels: Labels | None
    """Returns the labels of a dataset, one per sample; ``None`` to look where datasets keep them."""

    @abstractmethod
    def deal(self, classes: np.ndarray, workers: int, draws: torch.Generator) -> list[np.ndarray]:
        """Return the indices of each worker's shard.

        Args:
            classes: The class of each sample, counted from 0 in the order of the labels.
            workers: Number of logical workers.
            draws: The only source of randomness.

        """

    def indices(self, dataset: Sized, *, workers: int, worker: int, seed: int) -> Indices:
        """Return the indices of one worker's shard."""
        return self.shards(dataset, workers=workers, seed=seed)[worker]

    def shards(self, dataset: Sized, *, workers: int, seed: int) -> Sequence[Indices]:
        """Return the indices of each worker's shard."""
        classes = classes_of(dataset, self.labels, asked_by=type(self).__name__)
        return self.deal(classes, workers, generator(seed, "partition"))


def classes_of(dataset: Sized, labels: Labels | None = None, *, asked_by: str = "A partition by label") -> np.ndarray:
    """Return the class of each sample, counted from 0 in the order of the labels.

    Without ``labels``, the labels are looked for in the last tensor of a ``TensorDataset``, in a list of (sample, label) pairs, in the attributes
    ``targets``, ``labels`` and ``y``, in the columns ``label`` and ``labels`` of a table as Hugging Face's, and in the datasets that a ``Subset`` or
    a ``ConcatDataset`` is made of.

    Raises:
        ValueError: If there are none, or not one per sample.

    Example:
        >>> classes_of([("a", "cat"), ("b", "dog"), ("c", "cat")]).tolist()
        [0, 1, 0]

    """
    found = labels(dataset) if labels is not None else _found(dataset)
    if found is None:
        raise ValueError(
            f"{asked_by} needs the labels of the samples, and {type(dataset).__name__} has them in none of the places where datasets keep them:"
            " give labels=, a function that takes the dataset and returns one label per sample."
        )
    values = _array(found)
    if values.shape != (len(dataset),):
        raise ValueError(
            f"{asked_by} needs one label for each of the {len(dataset)} samples, and those of {type(dataset).__name__} are of shape {values.shape}:"
            " give labels=, a function that takes the dataset and returns one label per sample."
        )
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _found(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        inner = _found(dataset.dataset)
        return None if inner is None else _array(inner)[np.asarray(dataset.indices, dtype=int)]
    if isinstance(dataset, ConcatDataset):
        parts = [_found(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else np.concatenate([_array(part) for part in parts])
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1]
    if isinstance(dataset, list | tuple):
        pairs = all(isinstance(item, list | tuple) and len(item) == 2 for item in dataset)
        return [label for _, label in dataset] if pairs and len(dataset) else None
    columns = [column for column in ("label", "labels") if column in (getattr(dataset, "column_names", None) or ())]
    attributes = [getattr(dataset, name, None) for name in ("targets", "labels", "y")]
    return (
        dataset[columns[0]] if columns else next((values for values in attributes if isinstance(values, Sized)), None)
    )


def _array(labels: Any) -> np.ndarray:
    values = (
        labels.detach().cpu().numpy()
        if isinstance(labels, Tensor)
        else np.asarray(list(labels) if isinstance(labels, Sequence) else labels)
    )
    return values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
