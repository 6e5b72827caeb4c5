"""What is known of weights and rows as numbers of the host, each read from its device once."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def fact(compute: Callable[[Any], Value]) -> Callable[[Any], Value]:
    """A method without arguments whose result a stack keeps, under the name of the method."""

    @wraps(compute)
    def known(self: Any) -> Value:
        if compute.__name__ not in self._cache:
            self._cache[compute.__name__] = compute(self)
        return self._cache[compute.__name__]

    return known


def refuse_unfit(vectors: object, f: float, reference: Tensor | None) -> None:
    """Refuse what is no stack of rows, no weight, or no point among the rows."""
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.is_floating_point():
        given = f"{(*vectors.shape,)} of {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(f"vectors must be a floating point tensor with one row per worker (n, d), not {given}")
    if not 0 <= f < float("inf"):
        raise ValueError(f"f must be a finite weight >= 0, not {f}")
    if reference is not None and reference.shape != vectors.shape[1:]:
        raise ValueError(f"reference must have {vectors.shape[1]} coordinates, not shape {tuple(reference.shape)}")


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
