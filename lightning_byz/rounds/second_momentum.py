"""Two averages over time, one behind the other: the workers' and the optimizer's."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_byz.estimators import Estimator

SHORT = 2.0
"""Steps up to which an average is none to speak of."""


def second_momentum(estimator: Estimator, optimizers: Iterable[Optimizer]) -> str | None:
    """Return what to warn of where an optimizer averages again what the estimator has averaged over time; ``None`` where none does.

    Args:
        estimator: What workers send.
        optimizers: Those of the run.

    """
    for optimizer in optimizers if _averages(estimator) else ():
        for group in optimizer.param_groups:
            name, momentum = _momentum(group)
            if momentum < 1 and 1 / (1 - momentum) > SHORT:
                return (
                    f"{type(optimizer).__name__}({name}={group[name]}) averages over about {1 / (1 - momentum):.0f} steps what {estimator!r} has"
                    f" averaged over time already, so that the parameters follow twice as late: give the optimizer {_without(name, group)}, or the"
                    " strategy estimator=Gradient()."
                )
    return None


def _averages(estimator: Estimator) -> bool:
    """Whether something is left of a gradient one step later."""
    memory, estimate = estimator.init(torch.zeros(2)), torch.zeros(2)
    for count, gradient in enumerate([torch.ones(2), torch.zeros(2)]):
        estimate, memory = estimator.update(memory, [gradient.clone() for _ in range(estimator.points)], count=count)
    return bool(estimate.any())


def _momentum(group: dict[str, Any]) -> tuple[str, float]:
    """Return the name of a group's momentum, and its weight of the past."""
    betas = group.get("betas")
    return ("betas", float(betas[0])) if betas else ("momentum", float(group.get("momentum") or 0.0))


def _without(name: str, group: dict[str, Any]) -> str:
    return "momentum=0" if name == "momentum" else f"betas={(0.0, *group['betas'][1:])}"
