"""When two tensors hold the same numbers."""

import torch
from torch import Tensor


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two buffers hold the same numbers, NaN where the other has NaN.

    Example:
        >>> same(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])), same(torch.zeros(2), torch.zeros(3))
        (True, False)

    """
    if first.shape != second.shape or torch.equal(first, second):
        return first.shape == second.shape
    return first.is_floating_point() and torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)
