r"""How the excess loss of a stochastic convex problem falls where workers are stale: log-log slopes, and errors beside their bounds.

    python benchmarks/convex_arrivals.py slopes
    python benchmarks/convex_arrivals.py floors
    python benchmarks/convex_arrivals.py slopes --lengths='[250, 500, 1000]' --seeds=2 --attacks='[ALIE]'

The problem of benchmarks/convex.py. Of 17 workers one delivers at a step, with a probability in the square of its id, what it computed where it was
after its last delivery; the last 8 attack and make a stated share of all deliveries. The rule sees each one's last message, weighed by deliveries.
*slopes*: double momentum by the schedules of the theory, CTMA over the median. *floors*: momentum at a constant rate, where each honest message keeps
its noise, so that errors do not vanish. Over the last half of the steps, the root mean square of the distance between the aggregate and the weighted
mean of the honest messages, in units of these messages' own root mean square deviation; the root of kappa at the last weights, its bound; and the
mean excess loss. Everything is float64.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from convex import ATTACKERS, ATTACKS, CURVATURES, DIMENSION, METHODS, OPTIMUM, RULE, WORKERS, excess, slope
from jsonargparse import auto_cli
from tables import markdown
from torch import Tensor

from lightning_byz import Stack
from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import Attack, Sight

RULES: Mapping[str, Aggregator] = {"median": CoordinateMedian(), "CTMA": RULE}
BYZANTINE = torch.tensor([worker in ATTACKERS for worker in range(WORKERS)])


@dataclass(frozen=True)
class Found:
    """What a run leaves.

    Args:
        losses: The excess loss after each step.
        errors: For each step, the squared distance between the aggregate and the weighted mean of the honest rows, in units of these rows' variance.
        kappa: What bounds the last of them.
    """

    losses: Sequence[float]
    errors: Sequence[float]
    kappa: float


def error(vector: Tensor, rows: Tensor, weights: Tensor) -> float:
    """Return how far an aggregate is from the weighted mean of honest rows, squared, in units of their variance; 0 where they do not vary."""
    parts = weights / weights.sum()
    deviations = rows - (mean := parts @ rows)
    variance = float(parts @ deviations.square().sum(1))
    return float((vector - mean).square().sum()) / variance if variance else 0.0


def run(
    method: str,
    rule: Aggregator,
    attack: Attack | None,
    length: int,
    seed: int,
    *,
    share: float,
    rate: float,
    noise: float,
) -> Found:
    """Return what becomes of ``length`` deliveries, ``share`` of which are attackers'."""
    estimator, anytime, _ = METHODS[method]
    draws, deviations = torch.Generator().manual_seed(seed), CURVATURES.sqrt()
    attackers = list(ATTACKERS) if share else []
    schedule = RandomArrivals("squared", byzantine_share=share).schedule(WORKERS, attackers, seed)
    x = torch.nn.Parameter(torch.zeros_like(OPTIMUM))
    optimizer = torch.optim.SGD([x], lr=rate)
    if anytime is not None:
        anytime.attach(optimizer)
    memories, points = [estimator.init(OPTIMUM) for _ in range(WORKERS)], [x.detach().clone()] * WORKERS
    counts, computing, waiting = torch.zeros(WORKERS, dtype=torch.float64), range(WORKERS), [OPTIMUM] * WORKERS
    table, byzantine = torch.zeros(WORKERS, DIMENSION, dtype=torch.float64), BYZANTINE & bool(share)
    losses, errors, f = [], [], 0.0
    for step in range(length):
        for worker in computing:
            row = torch.randn(DIMENSION, generator=draws, dtype=torch.float64) * deviations
            target = row @ OPTIMUM + noise * torch.randn((), generator=draws, dtype=torch.float64)
            here = x.detach().clone()
            gradients = [(row @ point - target) * row for point in (here, points[worker])[: estimator.points]]
            waiting[worker], memories[worker] = estimator.update(memories[worker], gradients, count=int(counts[worker]))
            points[worker] = here
        computing = schedule.due(step)
        for worker in computing:
            table[worker] = waiting[worker]
            counts[worker] += 1
        f = max(share * float(counts.sum()), float(counts[byzantine].sum()))
        if attack is not None and (due := [worker for worker in computing if worker in attackers]):
            lies = attack.replace(Sight(Stack(table, counts, f), attackers, draws, step=step))
            table[due] = lies[[attackers.index(worker) for worker in due]]
        x.grad = rule(Stack(table.clone(), counts, f))
        errors.append(error(x.grad, table[~byzantine], counts[~byzantine]))
        optimizer.step()
        losses.append(excess(x.detach()))
    return Found(losses, errors, rule.kappa(float(counts.sum()), f) or 0.0)


def slopes(
    *,
    lengths: Sequence[int] = (500, 1000, 2000, 4000),
    seeds: int = 3,
    attacks: Sequence[str] = tuple(ATTACKS),
    share: float = 0.4,
    rate: float = 0.03,
    noise: float = 1.0,
) -> None:
    """Print the losses of double momentum and their slopes.

    Args:
        lengths: Numbers of steps, each a run of its own.
        seeds: Runs of each length, from seed 1.
        attacks: Of ``none``, ``SignFlip`` and ``ALIE``; without one, no worker is Byzantine, but the rule guards against the share.
        share: The part of the deliveries that attackers make.
        rate: What is divided by the trace of H and by T.
        noise: Standard deviation of a target.
    """
    print(markdown(["attack", *(f"T = {one:,}" for one in lengths), "slope"], []), end="")
    for name in attacks:
        found = {
            length: [
                run("mu2", RULE, ATTACKS[name], length, seed, share=share, rate=rate / (float(CURVATURES.sum()) * length), noise=noise).losses[-1]
                for seed in range(1, seeds + 1)
            ]
            for length in lengths
        }  # fmt: skip
        means = [f"{statistics.fmean(values):.3g}" for values in found.values()]
        print(f"| `{name}` | {' | '.join([*means, slope(found)])} |", flush=True)


def floors(
    *,
    shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
    length: int = 1500,
    seeds: int = 3,
    attacks: Sequence[str] = ("SignFlip", "ALIE"),
    rate: float = 0.05,
    noise: float = 1.0,
) -> None:
    """Print the errors of both rules with momentum at a constant rate, beside the root of kappa.

    Args:
        shares: Parts of the deliveries that attackers make; with 0, nobody attacks.
        length: Number of steps.
        seeds: Runs of each share, from seed 1.
        attacks: Of ``none``, ``SignFlip`` and ``ALIE``.
        rate: Of SGD.
        noise: Standard deviation of a target.
    """
    print(markdown(["rule, attack, quantity", *(f"{one:g}" for one in shares)], []), end="")
    for rule, name in product(RULES, attacks):
        lines: dict[str, list[str]] = {"error": [], "root of kappa": [], "excess loss": []}
        for share in shares:
            attack = ATTACKS[name] if share else None
            runs = [
                run("momentum", RULES[rule], attack, length, seed, share=share, rate=rate, noise=noise)
                for seed in range(1, seeds + 1)
            ]
            last = length // 2
            lines["error"].append(spread([math.sqrt(statistics.fmean(one.errors[last:])) for one in runs]))
            lines["root of kappa"].append(f"{math.sqrt(statistics.fmean(one.kappa for one in runs)):.2f}")
            lines["excess loss"].append(spread([statistics.fmean(one.losses[last:]) for one in runs]))
        for quantity, cells in lines.items():
            print(f"| `{rule}, {name}, {quantity}` | {' | '.join(cells)} |", flush=True)


def spread(values: Sequence[float]) -> str:
    """Return the mean and its standard error, to three digits."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.3g} ± {error:.1g}"


if __name__ == "__main__":
    auto_cli([slopes, floors], as_positional=False)
