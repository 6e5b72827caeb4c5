"""What is known of a stack: computed once, when it is first asked for, and read from its device once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Owner = TypeVar("Owner")
Value = TypeVar("Value")


def fact(compute: Callable[[Owner], Value]) -> Callable[[Owner], Value]:
    """A method without arguments whose result the object keeps in its ``_cache``, under the name of the method."""
    name = compute.__name__

    @functools.wraps(compute)
    def known(self: Any) -> Value:
        if name not in self._cache:
            self._cache[name] = compute(self)
        return self._cache[name]

    return known


def counted(counts: Tensor) -> tuple[int, ...]:
    """The places of what is not zero."""
    return tuple(place for place, count in enumerate(counts.tolist()) if count)


def total_of(weights: Sequence[float]) -> float:
    """The sum of ``weights``, as a tensor of them is added up."""
    return float(torch.tensor(weights, dtype=torch.float64).sum())


def weights_of(given: Tensor | Sequence[float] | None, vectors: Tensor) -> tuple[Tensor, tuple[float, ...]]:
    """The weights of the rows of ``vectors``, in float64: beside them, and as numbers.

    Raises:
        ValueError: If they are not one finite number >= 0 per row.
    """
    count = vectors.shape[0]
    weights = torch.ones(count, dtype=torch.float64) if given is None else torch.as_tensor(given, dtype=torch.float64)
    numbers = tuple(weights.tolist()) if weights.shape == (count,) else (-1.0,)
    if not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"weights must be {count} finite numbers >= 0, one per row, not {weights.tolist()}")
    return weights.detach().to(vectors.device), numbers
