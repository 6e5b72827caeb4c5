"""A running average of the iterates as the point where gradients are computed."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from torch.optim import LBFGS, Optimizer

from lightning_byz.optimizers.averaging import ATTACHED, Averaging


@dataclass(frozen=True)
class Anytime:
    r"""Compute gradients at a running average of the iterates, whatever the optimizer makes of them.

    The module holds the average :math:`x`, the query point, at all times; the iterate :math:`w` lives in the optimizer's state. With :math:`x'_t`
    what the optimizer makes of :math:`x_t` in its step :math:`t = 1, 2, \dots`, and :math:`w_1 = x_1`:

    .. math:: w_{t+1} = w_t + \alpha_t (x'_t - x_t), \qquad x_{t+1} = x_t + \gamma_t (w_{t+1} - x_t)

    ============  ========================================  =====================  =========================================
    ``gamma``     :math:`\gamma_t`                          :math:`\alpha_t`       whose
    ============  ========================================  =====================  =========================================
    ``None``      :math:`2 / (t + 2)`                       :math:`t`              the theory of the references
    a number      that number                               1                      0.1 in arXiv 2501.09621
    "released"    max(round(2 / (t + 1), 3), 0.01)          1                      the code released with arXiv 2405.14759
    ============  ========================================  =====================  =========================================

    Learning rate, schedulers, clipping and weight decay are the optimizer's own; decay acts at :math:`x`, coupled or not. A parameter counts its own
    steps: one without a gradient was not stepped, and nothing of it moves; neither does it where a GradScaler has the optimizer skip a step.
    ``gamma=1`` is the optimizer without averaging, bit for bit. The step is read off the parameters, so it is rounded to their precision before
    :math:`\alpha_t` multiplies it.

    Cost: a copy of the parameters before each step, one pass over them after it.
    Memory: :math:`w`, and :math:`x` before the step: two numbers per parameter that is stepped, in the parameter's dtype.

    Args:
        gamma: Weight of the new iterate in the average, in (0, 1], alike at all steps; ``None``, or "theory", and "released" for schedules.
        alpha: What the optimizer's step is multiplied by, above 0, alike at all steps; ``None`` for the schedule's own.

    Raises:
        ValueError: If ``gamma`` or ``alpha`` is out of range or no such word.

    References:
        Cutkosky. Anytime Online-to-Batch, Optimism and Acceleration. ICML 2019, arXiv 1903.00974.
        Levy. mu^2-SGD: Stable Stochastic Optimization via a Double Momentum Mechanism. 2023, arXiv 2304.04172.
        Dahan, Levy. Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous Training. ICML 2024, arXiv 2405.14759.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor([8.0]))
        >>> optimizer = torch.optim.SGD([x], lr=1.0)
        >>> handle = Anytime(0.5).attach(optimizer)
        >>> for _ in range(2):  # without averaging: 7, 6
        ...     x.grad = torch.tensor([1.0])
        ...     optimizer.step()
        >>> x.data, optimizer.state[x]["anytime_iterate"]
        (tensor([6.7500]), tensor([6.]))

    """

    gamma: float | Literal["theory", "released"] | None = None
    _: KW_ONLY
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no weight, no factor and no schedule."""
        if self.gamma == "theory":
            object.__setattr__(self, "gamma", None)
        if self.gamma not in (None, "released") and not _within(self.gamma, 1.0):
            raise ValueError(
                f"Anytime(gamma={self.gamma!r}): gamma must be a number in (0, 1], of which 0.1 averages over about ten steps and 1 not at all,"
                " or None, 'theory' or 'released' for a schedule."
            )
        if self.alpha is not None and not _within(self.alpha, math.inf):
            raise ValueError(
                f"Anytime(alpha={self.alpha!r}): alpha must be a finite number above 0, or None for the schedule's own factor."
            )

    def schedule(self, step: int) -> tuple[float, float]:
        """Return gamma_t and alpha_t of step ``t``, the first of which is 1.

        Example:
            >>> Anytime().schedule(4), Anytime("released").schedule(4), Anytime(0.1, alpha=3).schedule(4)
            ((0.3333333333333333, 4.0), (0.4, 1.0), (0.1, 3.0))
        """
        if self.gamma is None:
            gamma, alpha = 2 / (step + 2), float(step)
        elif self.gamma == "released":
            gamma, alpha = max(round(2 / (step + 1), 3), 0.01), 1.0
        else:
            gamma, alpha = float(self.gamma), 1.0
        return gamma, alpha if self.alpha is None else float(self.alpha)

    def attach(self, optimizer: Optimizer) -> Averaging:
        """Average from the optimizer's next step on, until ``.remove()`` of what is returned.

        What was remembered stays in the optimizer's state, so that another ``attach`` goes on from it. A copy of the optimizer has no hooks.

        Raises:
            TypeError: If it is no torch optimizer.
            ValueError: If it is LBFGS, a wrapper around an optimizer, or averages already.

        """
        if not isinstance(optimizer, Optimizer):
            given = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(f"Anytime.attach got {given}: give an instance of a torch.optim.Optimizer.")
        name = type(optimizer).__name__
        if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
            raise ValueError(
                f"{name} is a wrapper around the optimizer that steps: give Anytime.attach its .optimizer instead."
            )
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                f"{name} evaluates the loss several times a step, at points that are no average: use Anytime with another optimizer, or leave it out."
            )
        if hasattr(optimizer, ATTACHED):
            raise ValueError(
                f"This {name} has an Anytime already, and averages of averages follow no schedule: remove() the first, or attach one only."
            )
        return Averaging(optimizer, self.schedule)


def _within(value: object, largest: float) -> bool:
    """Whether it is a finite number above 0, and at most the largest."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= largest and math.isfinite(value)
