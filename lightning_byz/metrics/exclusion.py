"""Whether those who were left out are those who attack."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.census import Arrival
from lightning_byz.rounds import Report


class Exclusion(Metric):
    """Precision and recall of who was left out, with the attackers as positives.

    A worker is *left out* of a step if what it sent had no share in the aggregate, broken messages among it. ``compute()`` returns a dictionary over
    all messages of all steps: ``precision``, the part of those left out that attackers had sent, and ``recall``, the part of the attackers' that was
    left out. NaN stands for a quotient of nothing: nobody was left out, no attacker sent anything, or the rule says no coefficients. That an
    honest worker is left out is no mistake: many rules leave out ``f`` workers at every step, whoever attacks.

    Args:
        attackers: Ids of the workers that attack.
        kwargs: As for every torchmetrics ``Metric``.

    Example:
        >>> metric = Exclusion([2])
        >>> metric.update(torch.tensor([0.5, 0.5, 0.0]))  # the share of each worker in an aggregate
        >>> metric.update(torch.tensor([0.0, 0.5, 0.5]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'precision': 0.5, 'recall': 0.5}
    """

    higher_is_better = True
    full_state_update = False

    caught: Tensor
    left_out: Tensor
    attacks: Tensor

    def __init__(self, attackers: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attackers = tuple(attackers)
        for name in ("caught", "left_out", "attacks"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, seen: Report | Tensor, sent: Tensor | None = None) -> None:
        """Add one step.

        Args:
            seen: The step's report, which counts if it has coefficients; or each worker's share in the aggregate (n,).
            sent: Beside shares, whether each worker sent something (n,); ``None`` for all.
        """
        if isinstance(seen, Report):
            if seen.coefficients is None:
                return
            out = torch.tensor(seen.left_out)
            silent = (Arrival.ABSENT, Arrival.NOT_DUE)
            here = torch.tensor([arrival not in silent for arrival in seen.census.arrival])
        else:
            here = torch.ones(len(seen), dtype=torch.bool) if sent is None else sent.bool().cpu()
            out = (seen.cpu() == 0) & here
        attack = torch.zeros_like(here)
        attack[list(self.attackers)] = True
        attack &= here
        self.caught += (attack & out).sum()
        self.left_out += out.sum()
        self.attacks += attack.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return ``precision`` and ``recall``."""
        return {"precision": self.caught / self.left_out, "recall": self.caught / self.attacks}
