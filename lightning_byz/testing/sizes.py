"""How many workers, how many of them faulty, and what they weigh: within what a rule tolerates."""

from typing import Any

import torch
from torch import Tensor

from lightning_byz.testing.case import Case, NothingToCheck


def workers(case: Case) -> int:
    """A number of workers from 1 to 65, mostly few."""
    return case.whole(1, min(case.one_of([7, 13, 13, 33, 65]), case.workers))


def equal(n: int) -> list[float]:
    """The weights of ``n`` workers that count alike."""
    return [1.0] * n


def tolerated(rule: Any, weights: Tensor, f: float) -> bool:
    """Whether the rule tolerates ``f`` of ``weights``, some of which may be zero."""
    present = [weight for weight in weights.tolist() if weight > 0]
    return bool(present) and rule.tolerates(present, f)


def most(rule: Any, n: int) -> int:
    """The largest whole ``f`` below half of ``n`` that the rule tolerates, or -1."""
    tolerated = [f for f in range((n + 1) // 2) if rule.tolerates(equal(n), f)]
    return max(tolerated, default=-1)


def size(case: Case, rule: Any, least: int = 0) -> tuple[int, int]:
    """``(n, most f)`` with at least ``least`` faulty workers tolerated."""
    for _ in range(40):
        n = workers(case)
        limit = most(rule, n)
        if limit >= least:
            return n, limit
    raise NothingToCheck


def generic(case: Case, rule: Any) -> tuple[int, float]:
    """``(n, f)`` where rules that choose among rows need not break ties: with few rows, two that are nearest to each other are equally good."""
    for _ in range(40):
        n, limit = size(case, rule)
        f = float(case.whole(0, limit))
        if case.chance(0.3) and rule.tolerates(equal(n), f + 0.5) and f + 0.5 < n / 2:
            f += 0.5
        if n == 1 or n - f >= 4:
            return n, f
    raise NothingToCheck


def fraction_beyond(case: Case, rule: Any, weights: Tensor, f: float) -> float:
    """``f``, or something between it and half of the total that the rule tolerates."""
    more = f + case.real(0, 1) * max(float(weights.sum()) / 2 - f, 0.0)
    return more if case.chance(0.4) and tolerated(rule, weights, more) else f


def uneven(case: Case, n: int) -> Tensor:
    """Weights as they occur and as they should not: parts, zeros, ratios up to a million, rarely far more, all tiny or huge together."""
    kind = case.whole(0, 3)
    if kind == 0:
        choices = torch.tensor([0.1, 1 / 7, 1e-3, 1.0, 3.0, 0.0], dtype=torch.float64)
        return choices[torch.randint(len(choices), (n,), generator=case.generator)]
    if kind == 1:
        return torch.full((n,), case.one_of([0.1, 1 / 7, 1e-3, 0.7]), dtype=torch.float64)
    spread = case.one_of([1.0, 1.0, 6.0, 6.0, 12.0])
    weights = 10 ** (spread * (torch.rand(n, generator=case.generator, dtype=torch.float64) - 0.5))
    return weights * 10 ** case.one_of([-30.0, -6.0, 0.0, 6.0, 30.0]) if kind == 2 else weights
