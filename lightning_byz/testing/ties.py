"""When two results may differ: where a rule must choose between rows that are equally good, rounding chooses."""

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import NothingToCheck, gap, require_close
from lightning_byz.testing.running import run

_NOISE, _JUMP, _TRIES = 1e-10, 1e-5, 8


def agree(rule: Aggregator, stack: Stack, left: Tensor, right: Tensor, what: str) -> None:
    """Raise ``Broken`` unless ``left`` and ``right`` are equal up to rounding, or ``stack`` is a tie, which decides nothing."""
    if gap(left, right) <= 1e-9:
        return
    if torch.is_tensor(left) and left.shape == right.shape and _is_a_tie(rule, stack):
        raise NothingToCheck
    require_close(left, right, what)


def _is_a_tie(rule: Aggregator, stack: Stack) -> bool:
    """Whether the result jumps when rows and weights are changed by nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(_TRIES):
        noise = torch.randn(stack.vectors.shape, generator=generator, dtype=torch.float64)
        # equal weights stay equal, but for what rounding does to them too
        weights = stack.weights * (
            1 + _NOISE * torch.randn(stack.weights.shape, generator=generator, dtype=torch.float64)
        )
        rows = stack.vectors + _NOISE * noise * stack.vectors.abs().clamp(min=1e-3)
        results.append(run(rule, Stack(rows, weights, stack.f, stack.reference)))
    return any(gap(result, results[0]) > _JUMP for result in results[1:])
