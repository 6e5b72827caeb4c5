"""Slow references, written as the definitions read: Python numbers and plain loops, weights as exact fractions.

Each takes rows (lists of floats), weights and f, and shares no code with the library.
"""

import itertools
import math
from fractions import Fraction

import numpy as np


def exact(weight: float) -> Fraction:
    """The fraction that a weight such as 0.1 or 1 / 7 is meant to be."""
    return Fraction(weight).limit_denominator(10**6)


def distance(left: list[float], right: list[float]) -> float:
    return math.dist(left, right)


def average(rows: list[list[float]], shares: list[Fraction]) -> list[float]:
    total = sum(shares)
    return [
        math.fsum(float(share) * row[k] for row, share in zip(rows, shares, strict=True)) / float(total)
        for k in range(len(rows[0]))
    ]


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


def neighbour_scores(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """The squared distances to the nearest rows, the row itself included, up to the weight W - f."""
    scores = []
    for row, weight in zip(rows, weights, strict=True):
        distances = [distance(row, other) for other in rows]
        shares = kept_nearest(distances, weights, f)
        score = math.fsum(float(share) * length**2 for share, length in zip(shares, distances, strict=True))
        scores.append(score if weight > 0 else math.inf)
    return scores


def krum(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    scores = neighbour_scores(rows, weights, f)
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


def geometric_median(
    rows: list[list[float]], weights: list[float], f: float, iterations: int = 8, smoothing: float = 1e-6
) -> list[float]:
    """Weiszfeld's iteration on the points themselves, from the coordinate-wise median."""
    point = coordinate_median(rows, weights, f)
    scale = coordinate_median([[distance(row, point)] for row in rows], weights, f)[0]
    for _ in range(iterations if scale else 0):  # half of the weight on the start: it is a minimum
        factors = [
            weight / max(distance(row, point), smoothing * scale) for row, weight in zip(rows, weights, strict=True)
        ]
        point = [
            math.fsum(factor * row[k] for row, factor in zip(rows, factors, strict=True)) / math.fsum(factors)
            for k in range(len(point))
        ]
    return point


def total_distance(rows: list[list[float]], weights: list[float], point: list[float]) -> float:
    return math.fsum(weight * distance(row, point) for row, weight in zip(rows, weights, strict=True))


def krum_scores(rows: list[list[float]], left: list[int], count: int) -> dict[int, float]:
    """For each row that is left, the squared distances to its ``count`` nearest others that are left."""
    scores = {}
    for row in left:
        others = sorted(distance(rows[row], rows[other]) ** 2 for other in left if other != row)
        scores[row] = math.fsum(others[:count])
    return scores


def multi_krum(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """Rows in the order of their scores, up to the weight W - f."""
    return average(rows, kept_nearest(neighbour_scores(rows, weights, f), weights, f))


def mean_around_median(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    result = []
    for k in range(len(rows[0])):
        column = [[row[k]] for row in rows]
        middle = coordinate_median(column, weights, f)
        result += average(column, kept_nearest([distance(value, middle) for value in column], weights, f))
    return result


def bulyan(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """Unit weights, whole f: n - 2 f rows by repeated Krum, then the n - 4 f values nearest to the median of each coordinate."""
    left, selected, bad = list(range(len(rows))), [], int(f)
    while len(selected) < len(rows) - 2 * bad:
        scores = krum_scores(rows, left, max(len(left) - bad - 2, 1))
        best = min(left, key=lambda row: (scores[row], row))
        left.remove(best)
        selected.append(best)
    chosen = [rows[row] for row in selected]
    return mean_around_median(chosen, [1.0] * len(chosen), 2 * bad)


def centered_clipping(
    rows: list[list[float]], weights: list[float], f: float, radius: float = 10.0, iterations: int = 3
) -> list[float]:
    centre, total = coordinate_median(rows, weights, f), math.fsum(weights)
    for _ in range(iterations):
        steps = []
        for row, weight in zip(rows, weights, strict=True):
            length = distance(row, centre)
            factor = weight / total * (min(1.0, radius / length) if length else 1.0)
            steps.append([factor * (value - at) for value, at in zip(row, centre, strict=True)])
        centre = [at + math.fsum(step[k] for step in steps) for k, at in enumerate(centre)]
    return centre


def diameter(rows: list[list[float]]) -> float:
    return max((distance(left, right) for left, right in itertools.combinations(rows, 2)), default=0.0)


def mda(rows: list[list[float]], weights: list[float], f: float) -> list[list[float]]:
    """Unit weights: the means of all sets of n - f rows of the smallest diameter, by trying all sets."""
    sets = [[rows[row] for row in chosen] for chosen in itertools.combinations(range(len(rows)), len(rows) - int(f))]
    least = min(diameter(chosen) for chosen in sets)
    return [average(chosen, [Fraction(1)] * len(chosen)) for chosen in sets if diameter(chosen) <= least * (1 + 1e-12)]


def smea(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """Unit weights: the mean of the n - f rows whose covariance has the smallest largest eigenvalue, by trying all sets."""

    def spread(chosen: tuple[int, ...]) -> float:
        points = np.array([rows[row] for row in chosen])
        centred = points - points.mean(0)
        return float(np.linalg.eigvalsh(centred.T @ centred / len(points))[-1])

    best = min(itertools.combinations(range(len(rows)), len(rows) - int(f)), key=spread)
    return average([rows[row] for row in best], [Fraction(1)] * len(best))


def monna(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    pivot = next(row for row, weight in zip(rows, weights, strict=True) if weight > 0)
    return average(rows, kept_nearest([distance(row, pivot) for row in rows], weights, f))


def principal(points: np.ndarray, parts: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest variance of the points counted by ``parts``, their mean, and their squared projections on its direction."""
    mean = parts @ points / parts.sum()
    centred = points - mean
    values, vectors = np.linalg.eigh((centred * parts[:, None]).T @ centred / parts.sum())
    return float(values[-1]), mean, (centred @ vectors[:, -1]) ** 2


def caf(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    points, left = np.array(rows), np.array(weights, dtype=float)
    least, smallest, best = left.sum() - 2 * f, math.inf, points[0]
    while left.sum() > least * (1 + 1e-6) or smallest == math.inf:
        spread, mean, apart = principal(points, left)
        if spread < smallest:
            smallest, best = spread, mean
        if spread < 1e-25:
            break
        left = left * (1 - apart / apart[left > 0].max())
        left[left < 1e-6 * np.array(weights)] = 0.0
    return best.tolist()


def dnc(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    """All coordinates drawn, one iteration."""
    _, _, apart = principal(np.array(rows), np.array(weights, dtype=float))
    return average(rows, kept_nearest(apart.tolist(), weights, f))


def sign_majority(rows: list[list[float]], weights: list[float], f: float) -> list[float]:
    result = []
    for k in range(len(rows[0])):
        votes = sum(exact(weight) * ((row[k] > 0) - (row[k] < 0)) for row, weight in zip(rows, weights, strict=True))
        result.append(float((votes > 0) - (votes < 0)))
    return result


def clipping(rows: list[list[float]], weights: list[float], f: float, radius: float = 2.0) -> list[list[float]]:
    return [[value * min(1.0, radius / math.hypot(*row)) for value in row] for row in rows]


def arc(rows: list[list[float]], weights: list[float], f: float) -> list[list[float]]:
    """The longest rows, up to the weight 2 f (W - f) / W together, get the length of the next longest."""
    masses, order = (
        [exact(weight) for weight in weights],
        sorted(range(len(rows)), key=lambda row: -math.hypot(*rows[row])),
    )
    total, cut = sum(masses), exact(f)
    left, bound = 2 * cut * (total - cut) / total, math.inf
    for row in (row for row in order if masses[row] > 0):
        bound = math.hypot(*rows[row])
        left -= masses[row]
        if left < 0:
            break
    return clipping(rows, weights, f, radius=bound)
