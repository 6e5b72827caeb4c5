"""Rows of which some are under an attacker's control, and how far a result may then lie from the honest mean."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, shown
from lightning_byz.testing.rows import HONEST, coalition


@dataclass(frozen=True, eq=False)
class Attacked:
    """Rows of honest workers and of attackers.

    Args:
        rows: All of them.
        weights: One per row.
        f: At least the attackers' weight.
        honest: The honest rows.
        shares: By how much of its weight each of them counts; the sum is the total weight less ``f``.
        reference: What rules that carry something over are given.
    """

    rows: Tensor
    weights: Tensor
    f: float
    honest: Tensor
    shares: Tensor
    reference: Tensor | None = None

    def stack(self) -> Stack:
        """A fresh stack of the rows."""
        return Stack(self.rows, self.weights, self.f, self.reference)

    @cached_property
    def _target(self) -> tuple[Tensor, float, float]:
        """Mean and variance of the honest rows, and the error that is rounding."""
        wide, parts = self.honest.double(), self.shares / self.shares.sum()
        centre = parts @ wide
        variance = float(parts @ (wide - centre).square().sum(1))
        limits = torch.finfo(self.rows.dtype)
        rounding = (
            4 * limits.eps * float(wide.abs().max()) + limits.smallest_normal * limits.eps if wide.numel() else 0.0
        )
        # in float64, what is smaller than the root of the smallest number is zero once squared
        unseen = 1e-150 if self.rows.dtype == torch.float64 else 0.0
        return centre, variance, (rounding + unseen) * math.sqrt(self.rows.shape[1])

    def ratio(self, result: Tensor, kappa: float) -> float:
        """``error^2 / (kappa variance)``, of the error beyond rounding."""
        centre, variance, slack = self._target
        error, bound = float((result.double() - centre).norm()), math.sqrt(kappa * variance)
        if not error > slack + bound * 1e-9:
            return 0.0
        return ((error - slack) / bound) ** 2 / (1 + 1e-9) ** 2 if bound > 0 else math.inf

    def judge(self, result: Tensor, kappa: float | None) -> None:
        """Raise unless ``result`` is finite and, where ``kappa`` is known, within the bound."""
        require(bool(result.isfinite().all()), f"the result is not finite: {shown(result)}")
        if kappa is None:
            return
        ratio = self.ratio(result, kappa)
        if ratio > 1:
            centre, variance, _ = self._target
            error = float((result.double() - centre).norm())
            require(
                False,
                f"error {error:.6g} from the honest mean, bound sqrt(kappa variance) = {math.sqrt(kappa * variance):.6g}; kappa {kappa:.4g}",
            )


def filled(weights: Tensor, order: Tensor, budget: float) -> Tensor:
    """Weights in the given order up to a sum of ``budget``."""
    ordered = weights[order]
    kept = torch.minimum(ordered, budget - (ordered.cumsum(0) - ordered)).clamp(min=0)
    return torch.zeros_like(weights).scatter(0, order, kept)


def attacked(case: Case, weights: Tensor, attackers: int, f: float, dtype: torch.dtype) -> Attacked:
    """Honest rows of one family and a coalition, at random places; the last ``attackers`` of ``weights`` are the attackers'."""
    n, d = len(weights), case.whole(1, 8) if case.chance(0.9) else 70
    family, honest_count = list(HONEST)[case.seed % len(HONEST)], len(weights) - attackers
    case.note(n=n, f=f, d=d, dtype=dtype, honest=repr(family))
    honest = HONEST[family](case, honest_count, d, dtype)
    place = case.order(n)
    rows = torch.cat([honest, coalition(case, honest, attackers)])[place]
    budget, own = float(weights.sum()) - f, weights[:honest_count]
    shares = filled(own, case.order(honest_count), budget) if case.chance(0.5) else own * (budget / float(own.sum()))
    return Attacked(rows, weights[place], f, honest, shares)
