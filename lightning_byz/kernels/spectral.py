"""Principal directions of weighted rows, found in their Gram matrix."""

import torch
from jaxtyping import Float64
from torch import Tensor


def principal_spread(
    gram: Float64[Tensor, "n n"], weights: Float64[Tensor, " n"]
) -> tuple[float, Float64[Tensor, " n"]]:
    """The largest variance of the rows along any direction, and each row's squared distance from the mean along that direction.

    Args:
        gram: Inner products of the rows about any point.
        weights: How much each row counts for mean and variance; their scale does not matter.
    """
    parts = weights / weights.sum()
    image = gram @ parts
    centred = gram - image[:, None] - image + parts @ image
    roots = parts.sqrt()
    values, vectors = torch.linalg.eigh(roots[:, None] * centred * roots)
    variance = max(float(values[-1]), 0.0)
    if variance == 0.0:
        return 0.0, torch.zeros_like(parts)
    return variance, (centred @ (roots * vectors[:, -1]) / variance**0.5).square()
