"""What is known of weights and rows as numbers of the host, each read from its device once."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
