r"""How fast the excess loss of a stochastic convex problem falls with the number of steps, with 8 of 17 workers Byzantine: log-log slopes.

    python benchmarks/convex.py
    python benchmarks/convex.py --lengths='[250, 500, 1000]' --seeds=2 --attacks='[ALIE]'

Least squares: in each step a worker draws a row :math:`a \sim N(0, H)`, where :math:`H` has eigenvalues :math:`1 / i^2`, and
:math:`b = a \cdot x^* + \xi`. The excess loss :math:`(x - x^*) \cdot H (x - x^*) / 2` is known exactly. Each length T is a run of its own. Double
momentum is ``Storm()`` with ``Anytime()``, both with the schedules of the theory, and a rate of ``rate`` / (trace of H, T); momentum is
``WorkerMomentum(0.9)`` with a rate of ``rate`` / (trace of H, square root of T). The rule is CTMA over the median. Everything is float64; a slope is
that of a line through the logarithms of all lengths and seeds, with scipy's standard error.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from jsonargparse import auto_cli
from scipy.stats import linregress
from tables import markdown
from torch import Tensor

from lightning_byz import Stack
from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import ALIE, Attack, Sight, SignFlip
from lightning_byz.estimators import Estimator, Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime

WORKERS, BYZANTINE, DIMENSION = 17, 8, 20
ATTACKERS = range(WORKERS - BYZANTINE, WORKERS)
CURVATURES = 1 / torch.arange(1, DIMENSION + 1, dtype=torch.float64).square()
OPTIMUM = torch.ones(DIMENSION, dtype=torch.float64)
RULE = CTMA(CoordinateMedian())
ATTACKS: Mapping[str, Attack | None] = {"none": None, "SignFlip": SignFlip(), "ALIE": ALIE()}
METHODS: Mapping[str, tuple[Estimator, Anytime | None, float]] = {
    "mu2": (Storm(), Anytime(), 1.0),
    "momentum": (WorkerMomentum(0.9), None, 0.5),
}
"""The estimator, the averaging, and the power of T by which the rate is divided."""


def excess(x: Tensor) -> float:
    """Return how far the loss at ``x`` is above the smallest."""
    return float((CURVATURES * (x - OPTIMUM).square()).sum() / 2)


def run(method: str, attack: Attack | None, length: int, seed: int, *, rate: float, noise: float) -> float:
    """Return the excess loss after ``length`` steps."""
    estimator, anytime, power = METHODS[method]
    draws, deviations = torch.Generator().manual_seed(seed), CURVATURES.sqrt()
    x = torch.nn.Parameter(torch.zeros_like(OPTIMUM))
    optimizer = torch.optim.SGD([x], lr=rate / (float(CURVATURES.sum()) * length**power))
    if anytime is not None:
        anytime.attach(optimizer)
    # estimators work coordinate by coordinate: those of all workers are one long vector
    memory, earlier = estimator.init(OPTIMUM.repeat(WORKERS)), x.detach().clone()
    for step in range(length):
        rows = torch.randn(WORKERS, DIMENSION, generator=draws, dtype=torch.float64) * deviations
        targets = rows @ OPTIMUM + noise * torch.randn(WORKERS, generator=draws, dtype=torch.float64)
        points = (x.detach(), earlier)[: estimator.points]
        gradients = [((rows @ point - targets)[:, None] * rows).flatten() for point in points]
        sent, memory = estimator.update(memory, gradients, count=step)
        stack = Stack(sent.view(WORKERS, DIMENSION), f=BYZANTINE)
        if attack is not None:
            lies = attack.replace(Sight(stack, ATTACKERS, draws, step=step))
            stack = Stack(torch.cat([stack.vectors[: WORKERS - BYZANTINE], lies]), f=BYZANTINE)
        earlier.copy_(x.detach())
        x.grad = RULE(stack)
        optimizer.step()
    return excess(x.detach())


def slope(found: Mapping[int, Sequence[float]]) -> str:
    """Return the slope of the logarithm of the losses over that of the lengths, with its standard error."""
    points = [(math.log(length), math.log(value)) for length, values in found.items() for value in values]
    line: Any = linregress([one for one, _ in points], [other for _, other in points])
    return f"{line.slope:.3f} ± {line.stderr:.3f}"


def main(
    *,
    lengths: Sequence[int] = (250, 500, 1000, 2000, 4000, 8000, 16000),
    seeds: int = 3,
    methods: Sequence[str] = tuple(METHODS),
    attacks: Sequence[str] = tuple(ATTACKS),
    rate: float = 1.0,
    noise: float = 1.0,
) -> None:
    """Run all, and print the losses and the slopes.

    Args:
        lengths: Numbers of steps, each a run of its own.
        seeds: Runs of each length, from seed 1.
        methods: Of ``mu2`` and ``momentum``.
        attacks: Of ``none``, ``SignFlip`` and ``ALIE``.
        rate: What is divided by the trace of H and by T or its square root.
        noise: Standard deviation of a target.
    """
    print(markdown(["method, attack", *(f"T = {one:,}" for one in lengths), "slope"], []), end="")
    for method, name in product(methods, attacks):
        found = {
            length: [run(method, ATTACKS[name], length, seed, rate=rate, noise=noise) for seed in range(1, seeds + 1)]
            for length in lengths
        }
        means = [f"{statistics.fmean(values):.3g}" for values in found.values()]
        print(f"| `{method}, {name}` | {' | '.join([*means, slope(found)])} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
