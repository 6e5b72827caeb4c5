"""Batches of the user's own loaders, split among the workers of a rank."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_byz.data import IID, Partition
from lightning_byz.strategies.loaders import KeyedLoader, WorkerBatches


class NoPart:
    """Stands for the part of a worker where a batch has fewer samples than the rank has workers: it is absent from the step."""


class SplitLoader:
    """The user's loader, whose batches become one part per logical worker of this rank; all else is the loader's own.

    Args:
        loader: The loader.
        parts: Workers on this rank.

    """

    def __init__(self, loader: KeyedLoader, *, parts: int) -> None:
        self._loader = loader
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        """Return the number of batches of the loader."""
        return len(self._loader)

    def __iter__(self) -> Iterator[WorkerBatches]:
        """Yield the parts of one batch at a time."""
        for batch in self._loader:
            yield WorkerBatches(split(batch, self._parts))


def split(batch: Any, parts: int) -> list[Any]:
    """Return consecutive parts of a batch, as equal as possible, the larger ones first; :class:`NoPart` for each that would be empty.

    Tensors and arrays are cut along their first dimension, and so are lists and tuples without a tensor in them, one entry per sample. Other lists
    and tuples, mappings and dataclasses are taken apart and put together again; ``None`` stays.

    Raises:
        ValueError: If something in the batch is none of these, or has another number of samples than the rest.

    Example:
        >>> split({"x": np.arange(5), "name": list("abcde")}, 2)
        [{'x': array([0, 1, 2]), 'name': ['a', 'b', 'c']}, {'x': array([3, 4]), 'name': ['d', 'e']}]

    """
    size = _samples(batch)
    bounds = [part * (size // parts) + min(part, size % parts) for part in range(parts + 1)]
    return [
        _each(batch, lambda leaf, low=low, high=high: leaf[low:high]) if low < high else NoPart()
        for low, high in pairwise(bounds)
    ]


def check_splitting(split_batches: object, partition: Partition, weights: object) -> None:
    """Refuse what deals out samples, or counts them, where batches are split."""
    if not isinstance(split_batches, bool):
        raise ValueError(f"split_batches={split_batches!r}: give True or False.")
    if split_batches and type(partition) is not IID:
        raise ValueError(
            f"split_batches=True gives each worker a part of every batch, and partition={type(partition).__name__}(...) a shard of the data:"
            " leave one of them out."
        )
    if split_batches and isinstance(weights, str):
        raise ValueError(
            f"split_batches=True gives workers equal parts of every batch, and weights={weights!r} asks for the sizes of their shards:"
            " leave weights out, or give one number per worker."
        )


def _samples(batch: Any) -> int:
    """Return the number of samples in a batch, on which all that is in it must agree."""
    leaves = dict(_leaves(batch, "batch"))
    sizes = {path: len(leaf) for path, leaf in leaves.items() if isinstance(leaf, Tensor | np.ndarray)}
    if not sizes:
        raise ValueError(
            f"split_batches=True: there is no tensor in the batch, a {type(batch).__name__}, to tell how many samples it has:"
            " have the loader's collate_fn make tensors."
        )
    first, size = next(iter(sizes.items()))
    for path, leaf in leaves.items():
        if len(leaf) != size:
            raise ValueError(
                f"split_batches=True: {first} has {size} samples and {path} has {len(leaf)}. Each tensor of a batch, and each list without tensors,"
                " must have one entry per sample: change the loader's collate_fn, or run one worker per rank."
            )
    return size


def _leaves(batch: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what is to be cut, by its place in the batch."""
    parts = _parts(batch)
    if parts is not None:
        for key, part in parts.items():
            yield from _leaves(part, f"{path}.{key}" if dataclasses.is_dataclass(batch) else f"{path}[{key!r}]")
    elif _is_cut(batch):
        yield path, batch
    elif batch is not None:
        what = (
            f"a tensor of no dimension, {batch!r}" if isinstance(batch, Tensor) else f"{type(batch).__name__} {batch!r}"
        )
        raise ValueError(
            f"split_batches=True: {path} is {what}, of which workers cannot have parts: have the loader's collate_fn give tensors, or lists"
            " with one entry per sample, or run one worker per rank."
        )


def _each(batch: Any, cut: Callable[[Any], Any]) -> Any:
    """Return a batch of the same types with everything in it cut."""
    parts = _parts(batch)
    if parts is None:
        return None if batch is None else cut(batch)
    made = {key: _each(part, cut) for key, part in parts.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(*made.values()) if hasattr(batch, "_fields") else type(batch)(made.values())
    if not isinstance(batch, Mapping):
        return dataclasses.replace(batch, **made)
    copied: Any = copy.copy(batch)
    for key, part in made.items():
        copied[key] = part
    return copied


def _parts(batch: Any) -> Mapping[Any, Any] | None:
    """Return what a batch is made of, by key, field or index; ``None`` if it is to be cut, or cannot be."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, list | tuple):
        return dict(enumerate(batch)) if _holds_tensors(batch) else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.init}
    return None


def _holds_tensors(batch: Any) -> bool:
    if isinstance(batch, Tensor | np.ndarray):
        return True
    inside = _parts(batch) if not isinstance(batch, list | tuple) else dict(enumerate(batch))
    return inside is not None and any(map(_holds_tensors, inside.values()))


def _is_cut(batch: Any) -> bool:
    if isinstance(batch, Tensor | np.ndarray):
        return batch.ndim > 0
    return isinstance(batch, Sequence) and not isinstance(batch, str | bytes)


def parts_of(batch: Any, count: int) -> list[Any]:
    """Return each worker's part of a batch, or of a collection of several loaders' batches, of which it must have a part each."""
    return [_part(batch, place) for place in range(count)]


def _part(batch: Any, place: int) -> Any:
    taken: list[Any] = []

    def take(batches: WorkerBatches) -> Any:
        taken.append(batches[place])
        return batches[place]

    part = apply_to_collection(batch, WorkerBatches, take, include_none=True)
    return next((one for one in taken if one is None or isinstance(one, NoPart)), part)
