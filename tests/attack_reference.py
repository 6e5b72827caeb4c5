"""Slow references of the attacks, written as the definitions read: Python numbers and plain loops.

Each takes rows (lists of floats), weights and the attackers' ids, returns one row per attacker, and shares no code with the library.
"""

import math
import struct
from collections.abc import Callable, Sequence
from statistics import NormalDist

Rows = list[list[float]]
Row = list[float]


def dot(left: Row, right: Row) -> float:
    return math.fsum(one * other for one, other in zip(left, right, strict=True))


def honest_workers(weights: Sequence[float], attackers: Sequence[int]) -> list[int]:
    return [worker for worker, weight in enumerate(weights) if weight > 0 and worker not in attackers]


def mean_of(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Row:
    honest = honest_workers(weights, attackers)
    total = math.fsum(weights[worker] for worker in honest)
    return [math.fsum(weights[worker] / total * rows[worker][k] for worker in honest) for k in range(len(rows[0]))]


def deviation_of(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Row:
    """The standard deviation whose square is unbiased, for reliability weights; zero for a single row."""
    honest, mean = honest_workers(weights, attackers), mean_of(rows, weights, attackers)
    total = math.fsum(weights[worker] for worker in honest)
    shares = {worker: weights[worker] / total for worker in honest}
    freedom = 1 - math.fsum(share**2 for share in shares.values())
    if len(honest) == 1:
        return [0.0] * len(mean)
    return [
        math.sqrt(math.fsum(share * (rows[worker][k] - mean[k]) ** 2 for worker, share in shares.items()) / freedom)
        for k in range(len(mean))
    ]


def turned(factor: float) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    return lambda rows, weights, attackers: [[-factor * number for number in rows[worker]] for worker in attackers]


def ipm(epsilon: float) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    return lambda rows, weights, attackers: [
        [-epsilon * number for number in mean_of(rows, weights, attackers)] for _ in attackers
    ]


def constant(value: float) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    return lambda rows, weights, attackers: [[value] * len(rows[0]) for _ in attackers]


def default_z(weights: Sequence[float], attackers: Sequence[int]) -> float:
    """The published number where all weights are equal; where they differ, half of all weight over the honest weight."""
    present = [weight for weight in weights if weight > 0]
    honest = [weights[worker] for worker in honest_workers(weights, attackers)]
    if len(set(present)) == 1:
        supporters = max(math.floor(len(present) / 2 + 1) - (len(present) - len(honest)), 1)
        part = (len(honest) - supporters) / len(honest)
    else:
        part = min(sum(present) / 2 / sum(honest), 1 - sum((weight / sum(honest)) ** 2 for weight in honest))
    return NormalDist().inv_cdf(part) if part > 0.5 else 0.0


def alie(z: float | None) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    def sent(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Rows:
        mean, deviation = mean_of(rows, weights, attackers), deviation_of(rows, weights, attackers)
        far = default_z(weights, attackers) if z is None else z
        return [[middle - far * spread for middle, spread in zip(mean, deviation, strict=True)] for _ in attackers]

    return sent


def mimic(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Rows:
    """The top direction by power iteration among the coordinates."""
    honest, mean = honest_workers(weights, attackers), mean_of(rows, weights, attackers)
    apart = {worker: [number - middle for number, middle in zip(rows[worker], mean, strict=True)] for worker in honest}
    direction = [1.0 + 0.1 * k for k in range(len(mean))]
    for _ in range(3000):
        pulls = {worker: weights[worker] * dot(apart[worker], direction) for worker in honest}
        direction = [math.fsum(pulls[worker] * apart[worker][k] for worker in honest) for k in range(len(mean))]
        length = math.sqrt(dot(direction, direction)) or 1.0
        direction = [number / length for number in direction]
    copied = max(honest, key=lambda worker: abs(dot(apart[worker], direction)))
    return [rows[copied] for _ in attackers]


def against(kind: str, rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Row:
    if kind == "std":
        return [-number for number in deviation_of(rows, weights, attackers)]
    mean = mean_of(rows, weights, attackers)
    if kind == "unit":
        return [-number / math.sqrt(dot(mean, mean)) for number in mean]
    return [-math.copysign(1.0, number) if number else 0.0 for number in mean]


def furthest(mean: Row, direction: Row, allowed: Callable[[Row], bool]) -> Row:
    """The last point along the direction that is allowed, by doubling and halving."""

    def point(gamma: float) -> Row:
        return [middle + gamma * step for middle, step in zip(mean, direction, strict=True)]

    low, high = 0.0, 1.0
    while allowed(point(high)):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(point(middle)) else (low, middle)
    return point(low)


def min_max(kind: str) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    def sent(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Rows:
        honest = [rows[worker] for worker in honest_workers(weights, attackers)]
        widest = max(math.dist(left, right) for left in honest for right in honest)
        direction = against(kind, rows, weights, attackers)
        end = furthest(
            mean_of(rows, weights, attackers),
            direction,
            lambda point: max(math.dist(point, row) for row in honest) <= widest,
        )
        return [end for _ in attackers]

    return sent


def min_sum(kind: str) -> Callable[[Rows, Sequence[float], Sequence[int]], Rows]:
    def sent(rows: Rows, weights: Sequence[float], attackers: Sequence[int]) -> Rows:
        honest = honest_workers(weights, attackers)

        def spread(point: Row) -> float:
            return math.fsum(weights[worker] * math.dist(point, rows[worker]) ** 2 for worker in honest)

        widest = max(spread(rows[worker]) for worker in honest)
        direction = against(kind, rows, weights, attackers)
        end = furthest(mean_of(rows, weights, attackers), direction, lambda point: spread(point) <= widest)
        return [end for _ in attackers]

    return sent


def different_bits(left: float, right: float, format: str) -> list[int]:
    """Places of the bits in which two numbers differ; ``format`` is that of ``struct``: e, f or d."""
    whole = {"e": "H", "f": "I", "d": "Q"}[format]
    bits = [struct.unpack(whole, struct.pack(format, number))[0] for number in (left, right)]
    return [place for place in range(64) if (bits[0] ^ bits[1]) >> place & 1]
