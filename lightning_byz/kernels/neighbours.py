"""How near rows are to their neighbours: the scores of the Krum family."""

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.kernels.shares import nearest_shares


def neighbour_scores(
    distances: Float64[Tensor, "n n"], weights: Float64[Tensor, " n"], f: float, *, published: bool
) -> Float64[Tensor, " n"]:
    """The sum of squared ``distances`` of each row to its nearest rows; infinite for rows without weight.

    The nearest rows are those up to a weight of ``W - f``, the row itself included; where ``published``, the ``W - f - 2`` nearest others, but at
    least one, for weights 0 and 1.
    """
    total = float(weights.sum())
    if published:
        # a row's own distance is set below all others, so that it alone is what the budget's first unit buys
        apart = distances.clone().fill_diagonal_(-1.0)
        shares = nearest_shares(apart, weights, max(total - f - 1, 2.0)).fill_diagonal_(0.0)
    else:
        shares = nearest_shares(distances, weights, total - f)
    # weights and distances may both be huge
    return torch.where(weights > 0, (shares / weights.max() * distances).sum(1), torch.inf)
