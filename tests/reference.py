"""Slow references, written as the definitions read: Python numbers and plain loops, weights as exact fractions.

Each takes rows (lists of floats), weights and f, and shares no code with the library.
"""

import math
from fractions import Fraction


def exact(weight: float) -> Fraction:
    """The fraction that a weight such as 0.1 or 1 / 7 is meant to be."""
    return Fraction(weight).limit_denominator(10**6)


def distance(left: list[float], right: list[float]) -> float:
    return math.dist(left, right)


def average(rows: list[list[float]], shares: list[Fraction]) -> list[float]:
    total = sum(shares)
    return [math.fsum(float(share) * row[k] for row, share in zip(rows, shares, strict=True)) / float(total) for k in range(len(rows[0]))]


def mean(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    return average(rows, [exact(weight) for weight in weights])


def coordinate_median(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """The smallest value with at least half of the weight at or below it, averaged with the largest with at least half at or above it."""
    masses = [exact(weight) for weight in weights]
    half, result = sum(masses) / 2, []
    for k in range(len(rows[0])):
        present = [(row[k], mass) for row, mass in zip(rows, masses, strict=True) if mass > 0]
        lower = min(value for value, _ in present if sum(mass for other, mass in present if other <= value) >= half)
        upper = max(value for value, _ in present if sum(mass for other, mass in present if other >= value) >= half)
        result.append(lower / 2 + upper / 2)
    return result


def trimmed_mean(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """The average of the part of the line of weights that is further than f from both of its ends."""
    masses, cut, result = [exact(weight) for weight in weights], exact(f), []
    for k in range(len(rows[0])):
        start, kept, terms = Fraction(0), Fraction(0), []
        for value, mass in sorted((row[k], mass) for row, mass in zip(rows, masses, strict=True)):
            inside = max(min(start + mass, sum(masses) - cut) - max(start, cut), Fraction(0))
            terms.append(float(inside) * value)
            kept += inside
            start += mass
        result.append(math.fsum(terms) / float(kept))
    return result


def kept_nearest(distances: list[float], weights: list[float], f: float) -> list[Fraction]:
    """What is kept of each row when the nearest rows are taken, lower ids first among equals, until the weight W - f is reached."""
    left = sum(exact(weight) for weight in weights) - exact(f)
    shares = [Fraction(0)] * len(weights)
    for row in sorted(range(len(weights)), key=lambda row: (distances[row], row)):
        shares[row] = min(exact(weights[row]), left)
        left -= shares[row]
    return shares


def krum(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    scores = []
    for row, weight in zip(rows, weights, strict=True):
        distances = [distance(row, other) for other in rows]
        shares = kept_nearest(distances, weights, f)
        score = math.fsum(float(share) * length**2 for share, length in zip(shares, distances, strict=True))
        scores.append(score if weight > 0 else math.inf)
    return rows[scores.index(min(scores))]


def krum_paper(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """Unit weights: the squared distances to the n - f - 2 nearest other rows."""
    count = int(len(rows) - f - 2)
    scores = []
    for index, row in enumerate(rows):
        others = sorted(distance(row, other) ** 2 for place, other in enumerate(rows) if place != index)
        scores.append(math.fsum(others[:count]))
    return rows[scores.index(min(scores))]


def ctma(base):
    def rule(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
        anchor = base(rows, weights, f)
        return average(rows, kept_nearest([distance(row, anchor) for row in rows], weights, f))

    return rule


def nnm(rows: list[list[float]], weights: list[float], f: float) -> list[list[float]]:
    return [average(rows, kept_nearest([distance(row, other) for other in rows], weights, f)) for row in rows]


def geometric_median(rows: list[list[float]], weights: list[float], f: float, iterations: int = 8, smoothing: float = 1e-6) -> list[float]:
    """Weiszfeld's iteration on the points themselves, from the coordinate-wise median."""
    point = coordinate_median(rows, weights, f)
    scale = coordinate_median([[distance(row, point)] for row in rows], weights, f)[0]
    for _ in range(iterations if scale else 0):  # half of the weight on the start: it is a minimum
        factors = [weight / max(distance(row, point), smoothing * scale) for row, weight in zip(rows, weights, strict=True)]
        point = [math.fsum(factor * row[k] for row, factor in zip(rows, factors, strict=True)) / math.fsum(factors) for k in range(len(point))]
    return point


def total_distance(rows: list[list[float]], weights: list[float], point: list[float]) -> float:
    return math.fsum(weight * distance(row, point) for row, weight in zip(rows, weights, strict=True))
