"""Shares of weight: how much of each row's weight a rule keeps, when what it keeps is a weight and not a number of rows."""

import torch
from jaxtyping import Float64
from torch import Tensor

SLIVER = 1e-6  # a kept share below this part of a row's weight is rounding, and a sliver of a row of 3e38 is not small
_GRAIN = 2.0**-45  # sums of weights are off by a part of this of all weight, which can be more than a light row has
_ROUNDING = 1e-12  # a share this close to all of a row's weight is all of it


def minority(weight: float, f: float) -> bool:
    """Whether ``f`` is below half of ``weight``, by more than rounding."""
    return weight - 2 * f > SLIVER * weight


def slivers(total: float) -> tuple[float, float]:
    """What is only rounding: a share of a row's weight, and a part of the ``total``."""
    return SLIVER, _GRAIN * total


def without_slivers(
    shares: Float64[Tensor, "..."], weights: Float64[Tensor, "..."], total: float | Tensor
) -> Float64[Tensor, "..."]:
    """``shares`` of ``weights``, with what is only rounding, of a row's weight or of their ``total``, set to zero."""
    return torch.ge(shares, (SLIVER * weights).clamp_(min=_GRAIN * total), out=torch.empty_like(shares)).mul_(shares)


def nearest_shares(
    distances: Float64[Tensor, "m n"], weights: Float64[Tensor, " n"], budget: float
) -> Float64[Tensor, "m n"]:
    """For each line of ``distances``, the weight kept of every row when the nearest rows are kept up to ``budget``.

    The row that passes the budget is kept in part; rows at equal distance are taken in the order of their index. A line sums to ``budget``, but
    for slivers.

    Example:
        >>> nearest_shares(torch.tensor([[3.0, 0.0, 2.0]]).double(), torch.ones(3).double(), 1.5)
        tensor([[0.0000, 1.0000, 0.5000]], dtype=torch.float64)
    """
    order = distances.argsort(dim=1, stable=True)
    ordered = weights[order]
    before = ordered.cumsum(1) - ordered
    kept = torch.minimum(ordered, budget - before).clamp_(min=0.0)
    kept = torch.where(kept > (1 - _ROUNDING) * ordered, ordered, kept)
    return torch.zeros_like(distances).scatter_(1, order, without_slivers(kept, ordered, weights.sum()))


def mixed_distances(gram: Float64[Tensor, "n n"], mixing: Float64[Tensor, "m n"]) -> Float64[Tensor, "m m"]:
    """Squared distances between the rows of ``mixing @ X``, from the Gram matrix of X about any point.

    The differences of the coefficients are formed first: what two mixtures share, however large, cancels exactly. Lines of ``mixing`` must have
    equal sums.
    """
    distances = torch.stack([(((line - mixing) @ gram) * (line - mixing)).sum(1) for line in mixing])
    return symmetric(distances)


def symmetric(distances: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Squared distances as they must be: symmetric, not negative, zero on the diagonal."""
    return ((distances + distances.T) / 2).clamp_(min=0.0).fill_diagonal_(0.0)
