"""How much each worker counts: what users may say, what caps do to it, and what f means then."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from lightning_byz.exchange import Exchange

WORDS = ("samples", "counts", "samples*counts")
"""Weights that follow from a run."""

ROUNDING = 1e-9
"""Part of a weight that is no difference."""


def checked_weights(weights: Any, max_share: float | int | None, workers: int | None) -> Any:
    """Return weights as a list of numbers or a word; refuse those that no run can use."""
    weights = weights.tolist() if isinstance(weights, np.ndarray | torch.Tensor) else weights
    check_weights(weights, max_share, workers)
    return weights


def check_weights(
    weights: Sequence[float | int] | str | None, max_share: float | int | None, workers: int | None
) -> None:
    """Refuse weights that no run can use."""
    if weights is not None and not (isinstance(weights, str) and weights in WORDS):
        if (
            isinstance(weights, str)
            or not isinstance(weights, Sequence)
            or not all(_is_number(weight) and weight >= 0 for weight in weights)
        ):
            raise ValueError(
                f"weights={weights!r}: give one finite number >= 0 per worker, such as [1, 1, 2], or 'samples' for the sizes of their shards; under"
                " arrivals 'counts' for the messages they have delivered, or 'samples*counts'."
            )
        if not any(weights):
            raise ValueError(f"weights={list(weights)}: at least one worker must have a weight above 0.")
        if workers is not None:
            _check_length(weights, workers)
    if max_share is not None and not (_is_number(max_share) and 0 < max_share <= 1):
        raise ValueError(
            f"max_share={max_share!r}: give the largest part of the total weight that one worker may have, above 0 and at most 1, or None."
        )
    if max_share is not None and weights is None:
        raise ValueError(
            f"max_share={max_share:g} caps unequal weights, and with weights=None all are equal: give weights=, or leave max_share out."
        )


def worker_weights(
    given: Sequence[float | int], max_share: float | int | None, *, workers: int
) -> tuple[float, ...] | None:
    """Return the weights of a run; ``None`` where they are equal, which is the same as no weights.

    Raises:
        ValueError: If there is not one per worker, or if they cannot be capped.

    """
    _check_length(given, workers)
    if not any(given):
        raise ValueError(f"weights={list(given)}: at least one worker must have a weight above 0.")
    weights = capped(given, 1.0 if max_share is None else max_share)
    return None if max(weights) - min(weights) <= ROUNDING * max(weights) else weights


def capped(weights: Sequence[float | int], max_share: float | int) -> tuple[float, ...]:
    r"""Lower the largest weights to one value so that none is more than ``max_share`` of what is then their sum.

    With the :math:`k` largest lowered to :math:`c` and :math:`r` the sum of the others, :math:`c = s (k c + r)`, so :math:`c = s r / (1 - s k)`;
    :math:`k` is the smallest for which the next weight is no more than that.

    Raises:
        ValueError: If there are too few workers with weight for such a share.

    Example:
        >>> capped([9, 4, 1, 1], 0.5)
        (6.0, 4.0, 1.0, 1.0)
        >>> capped([8, 4, 1, 1], 0.25)
        (1.0, 1.0, 1.0, 1.0)

    """
    ordered = sorted((float(weight) for weight in weights if weight > 0), reverse=True)
    if max_share * len(ordered) < 1 - ROUNDING:
        raise ValueError(
            f"max_share={max_share:g} and {len(ordered)} workers of positive weight: their shares cannot add up to 1."
            f" Give a max_share of at least 1 / {len(ordered)}, or leave it out."
        )
    for lowered, weight in enumerate(ordered):
        left = 1 - max_share * lowered
        cap = max_share * math.fsum(ordered[lowered:]) / left if left > ROUNDING else ordered[-1]
        if weight <= cap * (1 + ROUNDING):
            break
    else:
        cap = ordered[-1]
    return tuple(min(float(weight), cap) for weight in weights)


def gathered_sizes(
    local: Mapping[int, int | None], exchange: Exchange, *, workers: int, device: torch.device
) -> list[int]:
    """Return the size of every worker's shard. Every rank must call it.

    Args:
        local: The sizes of this rank's workers, ``None`` where unknown.
        exchange: Adds up over ranks.
        workers: Number of workers.
        device: Where collectives take place.

    Raises:
        ValueError: If a size is unknown.

    """
    counts = torch.zeros(2, workers, dtype=torch.int64)
    for worker, size in local.items():
        counts[:, worker] = torch.tensor([size or 0, size is None])
    sizes, unknown = exchange.all_reduce(counts.to(device).view(-1)).view(2, workers).tolist()
    if any(unknown):
        raise ValueError(
            f"weights='samples': the shards of workers {[worker for worker, flag in enumerate(unknown) if flag]} are of unknown size, being iterable"
            " data or batches of a sampler of their own: give weights=[...], one number per worker."
        )
    return sizes


def heaviest(weights: Sequence[float | int], f: float) -> float:
    """Return what any ``f`` workers weigh at most; a fraction of f takes that part of the next largest weight.

    Example:
        >>> heaviest([1, 2, 3, 4, 5], 1), heaviest([1, 2, 3, 4, 5], 1.5), heaviest([1, 2], 3)
        (5.0, 7.0, 3.0)

    """
    whole, ordered = math.floor(f), sorted(map(float, weights), reverse=True)
    return math.fsum(ordered[:whole]) + (f - whole) * math.fsum(ordered[whole : whole + 1])


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_length(weights: Sequence[float | int], workers: int) -> None:
    if len(weights) != workers:
        raise ValueError(
            f"weights={list(weights)} are {len(weights)} numbers for {workers} workers: give one per worker."
        )
