"""Gradients that overflow under a scaler: heard of when they are made, as their messages would say so too late."""

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

UNHEARD, FITS, OVERFLOWS = 0, 1, 2
"""What each worker's last turn at the present scale has shown."""


def overflowing(messages: Mapping[int, Tensor], scale: float | None) -> list[int]:
    """Return the workers whose messages are not finite where a smaller scale may mend that; one read of the device.

    Example:
        >>> overflowing({0: torch.tensor([1.0]), 3: torch.tensor([torch.inf])}, 1024.0), overflowing({3: torch.tensor([torch.inf])}, 1.0)
        ([3], [])

    """
    if scale is None or scale <= 1.0 or not messages:
        return []
    finite = torch.stack([message.isfinite().all() for message in messages.values()]).tolist()
    return [worker for worker, fits in zip(messages, finite, strict=True) if not fits]


def telling(sent: Container[int], over: Container[int], *, workers: int) -> Tensor:
    """Return what this rank tells the others of each worker's turn at this step."""
    words = [OVERFLOWS if one in over else FITS if one in sent else UNHEARD for one in range(workers)]
    return torch.tensor(words, dtype=torch.int64)


def heard(known: Sequence[int], told: Sequence[int]) -> list[int]:
    """Return what is known of each worker at the present scale, once some have told; 0 of who has not."""
    return [new or old for old, new in zip(known, told, strict=True)]


def too_large(known: Sequence[int], weights: Sequence[float], f: float) -> bool:
    """Whether a scale is too large: more than f weighs of those that overflow, or nobody who computed at it does not.

    Example:
        >>> too_large([2, 1, 0], [1.0] * 3, 1.0), too_large([2, 1, 2], [1.0] * 3, 1.0), too_large([2, 0, 0], [1.0] * 3, 1.0)
        (False, True, True)

    """
    if OVERFLOWS not in known:
        return False
    over = sum(weight for one, weight in zip(known, weights, strict=True) if one == OVERFLOWS)
    return FITS not in known or over > f
