"""Two averages over time, one behind the other: the workers' and the optimizer's."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_byz.estimators import Estimator

SHORT = 2.0
"""Steps up to which an average is none to speak of."""


def second_momentum(estimator: Estimator, optimizers: Iterable[Optimizer], *, remembers: bool) -> str | None:
    """Return what to warn of where an optimizer averages again what the estimator has averaged over time; ``None`` where none does.

    Args:
        estimator: What workers send.
        optimizers: Those of the run.
        remembers: Whether the estimator has a memory.

    """
    for optimizer in optimizers if remembers else ():
        for group in optimizer.param_groups:
            name, momentum = _momentum(group)
            if momentum < 1 and 1 / (1 - momentum) > SHORT:
                return (
                    f"{type(optimizer).__name__}({name}={group[name]}) averages over about {1 / (1 - momentum):.0f} steps what {estimator!r} has"
                    f" averaged over time already, so that the parameters follow twice as late: give the optimizer {_without(name, group)}, or the"
                    " strategy estimator=Gradient()."
                )
    return None


def _momentum(group: dict[str, Any]) -> tuple[str, float]:
    """Return the name of a group's momentum, and its weight of the past."""
    betas = group.get("betas")
    return ("betas", float(betas[0])) if betas else ("momentum", float(group.get("momentum", 0.0)))


def _without(name: str, group: dict[str, Any]) -> str:
    return "momentum=0" if name == "momentum" else f"betas={(0.0, *group['betas'][1:])}"
