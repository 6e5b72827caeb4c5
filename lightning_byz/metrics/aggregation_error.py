"""How far aggregates are from the mean of the honest messages."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.rounds import Report


class AggregationError(Metric):
    r"""Realised error of a rule, in the units of its constant :math:`\kappa`.

    With :math:`\bar x_H` the (weighted) mean of the honest messages of a step and
    :math:`V = \frac{1}{|H|} \sum_H \|x_i - \bar x_H\|^2`, a rule that returned :math:`F` has realised :math:`\|F - \bar x_H\|^2 / V`, and has
    promised to stay below :math:`\kappa` where the others weigh at most ``f``. It knows who is honest, so it is for experiments.

    ``compute()`` returns a dictionary: ``error``, the squared distances of all steps divided by their :math:`V`; ``worst_error``, the largest
    quotient of one step; and ``kappa``, the largest :math:`\kappa` of these steps. NaN stands for what is not known. Over several ranks, squared
    distances and :math:`V` are added up before they are divided.

    Args:
        kwargs: As for every torchmetrics ``Metric``.

    Raises:
        ValueError: If it is updated with an aggregate and without the honest rows.

    References:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan. Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity.
        AISTATS 2023, arXiv 2302.01772, where :math:`(f, \kappa)`-robustness is defined. What each rule promises is derived in docs/bounds.md.

    Example:
        >>> from lightning_byz.aggregators import Mean, TrimmedMean
        >>> from lightning_byz.stack import Stack
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [1e3]])
        >>> metric = AggregationError()
        >>> metric.update(TrimmedMean()(Stack(rows, f=1)), rows[:3], kappa=TrimmedMean().kappa(4, 1))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'error': 0.375, 'worst_error': 0.375, 'kappa': 0.5}
        >>> metric.reset(); metric.update(Mean()(Stack(rows)), rows[:3])
        >>> round(float(metric.compute()["error"]))
        93375
    """

    higher_is_better = False
    full_state_update = False

    error: Tensor
    variance: Tensor
    worst: Tensor
    kappa: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero, nothing = torch.zeros((), dtype=torch.float64), torch.tensor(-torch.inf, dtype=torch.float64)
        self.add_state("error", zero, dist_reduce_fx="sum")
        self.add_state("variance", zero.clone(), dist_reduce_fx="sum")
        self.add_state("worst", nothing, dist_reduce_fx="max")
        self.add_state("kappa", nothing.clone(), dist_reduce_fx="max")

    def update(self, seen: Report | Tensor, rows: Tensor | None = None, *, kappa: float | None = None) -> None:
        """Add one step.

        Args:
            seen: The step's report, which counts if the step was taken and measured; or its aggregate (d,).
            rows: Beside an aggregate, the honest messages (m, d).
            kappa: Beside an aggregate, what its rule promises; ``None`` for nothing.
        """
        if isinstance(seen, Report):
            error, variance, kappa = seen.error, seen.variance, seen.kappa
            if error is None or variance is None or error != error:
                return
            told = torch.tensor([error, variance], dtype=torch.float64)
        else:
            told = _measured(seen, rows)
        error, variance = told.to(self.error.device)
        self.error += error
        self.variance += variance
        self.worst = torch.fmax(self.worst, error / variance)
        if kappa is not None:
            self.kappa = self.kappa.clamp(min=kappa)

    def compute(self) -> dict[str, Tensor]:
        """Return ``error``, ``worst_error`` and ``kappa``."""
        return {"error": self.error / self.variance, "worst_error": _known(self.worst), "kappa": _known(self.kappa)}


def _measured(aggregate: Tensor, rows: Tensor | None) -> Tensor:
    """Return the squared distance of the aggregate from the rows' mean, and their variance."""
    if rows is None:
        raise ValueError(
            "AggregationError.update was given an aggregate alone; give it the honest rows too, or a report."
        )
    honest, point = rows.double(), aggregate.double()
    mean = honest.mean(0)
    return torch.stack([(point - mean).square().sum(), (honest - mean).square().sum(1).mean()])


def _known(value: Tensor) -> Tensor:
    return value.masked_fill(value == -torch.inf, torch.nan)
