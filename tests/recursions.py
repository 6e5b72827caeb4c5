"""Compressed robust methods restated from their papers: float64, numpy, plain loops; nothing of the library's rules, links or compressors.

A method is a function of a :class:`Run` and its own numbers, and returns the trajectory of x, one row per step, x after it. A problem's batches are
arrays, so that the library can be run on the same ones::

    problem = logistic(seed=0)
    run = Run(problem, np.zeros(problem.d), rate=0.5, attackers=(5, 6), attack=sign_flip, aggregate=median)
    expected = byz_ef21_sgdm(run, eta=0.1, k=3)

and on the library's side, worker i's closure at step t is the loss of ``problem.features[t, i]`` and ``problem.labels[t, i]``
(:meth:`Problem.loss`), under ``WorkerMomentum(beta=1 - eta)``, ``EF21()``, ``TopK(k)``, ``SignFlip()`` and ``CoordinateMedian()``.

What an attacker does: its own end goes on as if it were honest, and the rules rebuild its row from that. The attack replaces the rebuilt rows of the
attackers, and what it says is compressed like any message, against a second state that is played for the attacker (``"played"`` below), with the
same draws; the row that counts is the one rebuilt from this. All states start at zero.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray
Estimate = Callable[[int, int, Vector], Vector]
"""(step, worker, x) -> what the worker has to say; remembers by itself what it needs."""

Send = Callable[[int, int, str, Vector], Vector]
"""(step, worker, "own" or "played", what is said) -> the row that the rules rebuild; remembers by itself what both ends need."""

Compress = Callable[[int, int, Vector], Vector]
"""(step, worker, v) -> C(v)"""


@dataclass(frozen=True)
class Problem:
    """Logistic regression with (l2 / 2) ||x||^2: ``features`` of (steps, workers, batch, d), ``labels`` of (steps, workers, batch) in 0 and 1."""

    features: np.ndarray
    labels: np.ndarray
    l2: float

    @property
    def steps(self) -> int:
        return self.features.shape[0]

    @property
    def workers(self) -> int:
        return self.features.shape[1]

    @property
    def d(self) -> int:
        return self.features.shape[3]

    def gradient(self, step: int, worker: int, x: Vector) -> Vector:
        """Of the mean over the batch of log(1 + exp(-y a.x)), y = 2 label - 1, and the regulariser."""
        rows, signs = self.features[step, worker], 2.0 * self.labels[step, worker] - 1.0
        total = np.zeros_like(x)
        for row, sign in zip(rows, signs, strict=True):
            total += -sign * row / (1.0 + np.exp(sign * (row @ x)))
        return total / len(rows) + self.l2 * x


def logistic(
    *, seed: int, steps: int = 25, workers: int = 7, batch: int = 4, d: int = 30, l2: float = 0.01, whole: bool = False
) -> Problem:
    """Return drawn batches, somewhat different for each worker; ``whole``: of each worker the same at every step."""
    draws = np.random.default_rng(seed)
    shape = (1 if whole else steps, workers, batch, d)
    features = draws.normal(size=shape) + 0.5 * draws.normal(size=(1, workers, 1, d))
    truth = draws.normal(size=d)
    labels = (features @ truth + draws.normal(size=shape[:-1]) > 0).astype(np.int64)
    return Problem(np.broadcast_to(features, (steps, *shape[1:])), np.broadcast_to(labels, (steps, *shape[1:3])), l2)


@dataclass(frozen=True)
class Run:
    """What all methods are given."""

    problem: Problem
    start: Vector
    rate: float
    aggregate: Callable[[np.ndarray], Vector]
    attackers: Sequence[int] = ()
    attack: Callable[[np.ndarray, Sequence[int]], np.ndarray] | None = None

    def trajectory(self, estimate: Estimate, send: Send) -> np.ndarray:
        """x <- x - rate * aggregate(rows)"""
        x, visited = self.start.astype(np.float64), []
        for step in range(self.problem.steps):
            rows = []
            for worker in range(self.problem.workers):
                rows.append(send(step, worker, "own", estimate(step, worker, x)))
            if self.attack is not None:
                for worker, said in zip(self.attackers, self.attack(np.array(rows), self.attackers), strict=True):
                    rows[worker] = send(step, worker, "played", said)
            x = x - self.rate * self.aggregate(np.array(rows))
            visited.append(x)
        return np.array(visited)


# ---------------------------------------------------------------------- attacks and aggregators


def sign_flip(rows: np.ndarray, attackers: Sequence[int]) -> np.ndarray:
    return np.array([-rows[worker] for worker in attackers])


def against_the_mean(epsilon: float) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
    """Inner product manipulation: -epsilon times the mean of the honest rows, from each attacker."""

    def attack(rows: np.ndarray, attackers: Sequence[int]) -> np.ndarray:
        honest = [row for worker, row in enumerate(rows) if worker not in attackers]
        return np.array([-epsilon * mean(honest) for _ in attackers])

    return attack


def mean(rows: Sequence[Vector] | np.ndarray) -> Vector:
    return sum(rows) / len(rows)


def median(rows: np.ndarray) -> Vector:
    """Of an odd number of rows, coordinate by coordinate the one in the middle; of an even number the middle of the two."""
    ordered, n = np.sort(rows, axis=0), len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2.0


def trimmed_mean(f: int) -> Callable[[np.ndarray], Vector]:
    """Without the f smallest and the f largest values of each coordinate."""
    return lambda rows: mean(np.sort(rows, axis=0)[f : len(rows) - f])


# ---------------------------------------------------------------------- compressors


def top_k(k: int) -> Compress:
    """The k entries largest in absolute value; among equals those of the lower index."""

    def compress(step: int, worker: int, v: Vector) -> Vector:
        kept = sorted(range(len(v)), key=lambda index: (-abs(v[index]), index))[:k]
        result = np.zeros_like(v)
        result[kept] = v[kept]
        return result

    return compress


def scaled_sign(step: int, worker: int, v: Vector) -> Vector:
    """(||v||_1 / d) sign(v), the sign of 0 being 1."""
    return np.where(v >= 0, 1.0, -1.0) * (np.abs(v).sum() / len(v))


def random_k(masks: Any) -> Compress:
    """(d / k) v on a mask of k coordinates, zero elsewhere; ``masks[step][worker]`` are the k indices. Unbiased, omega = d / k - 1."""

    def compress(step: int, worker: int, v: Vector) -> Vector:
        mask, result = np.asarray(masks[step][worker]), np.zeros_like(v)
        result[mask] = v[mask] * (len(v) / len(mask))
        return result

    return compress


def shared_mask(masks: Any) -> Compress:
    """``random_k`` with one mask per step, ``masks[step]``, for all workers."""
    return lambda step, worker, v: random_k({step: {worker: masks[step]}})(step, worker, v)


def quantize(levels: int, uniforms: Any) -> Compress:
    """QSGD: ||v|| sign(v) floor(levels |v| / ||v|| + u) / levels, ``uniforms[step][worker]`` being u in [0, 1)."""

    def compress(step: int, worker: int, v: Vector) -> Vector:
        norm = np.sqrt((v * v).sum())
        if norm == 0:
            return np.zeros_like(v)
        return norm * np.sign(v) * np.floor(levels * np.abs(v) / norm + uniforms[step][worker]) / levels

    return compress


# ---------------------------------------------------------------------- what workers say


def _polyak(problem: Problem, eta: float) -> Estimate:
    """v <- (1 - eta) v + eta g, from v = 0"""
    memory: dict[int, Vector] = defaultdict(lambda: np.zeros(problem.d))

    def estimate(step: int, worker: int, x: Vector) -> Vector:
        memory[worker] = (1.0 - eta) * memory[worker] + eta * problem.gradient(step, worker, x)
        return memory[worker]

    return estimate


def _double(problem: Problem, eta: float) -> Estimate:
    """v <- (1 - eta) v + eta g; u <- (1 - eta) u + eta v; both are g at first"""
    v: dict[int, Vector] = {}
    u: dict[int, Vector] = {}

    def estimate(step: int, worker: int, x: Vector) -> Vector:
        gradient = problem.gradient(step, worker, x)
        if worker not in v:
            v[worker] = u[worker] = gradient
        else:
            v[worker] = (1.0 - eta) * v[worker] + eta * gradient
            u[worker] = (1.0 - eta) * u[worker] + eta * v[worker]
        return u[worker]

    return estimate


def _double_reduced(problem: Problem, eta: float) -> Estimate:
    """v <- g(x; batch) + (1 - eta) (v - g(x before; the same batch)); u <- (1 - eta) u + eta v; both are g at first"""
    v: dict[int, Vector] = {}
    u: dict[int, Vector] = {}
    before: dict[int, Vector] = {}

    def estimate(step: int, worker: int, x: Vector) -> Vector:
        here = problem.gradient(step, worker, x)
        if worker not in v:
            v[worker] = u[worker] = here
        else:
            there = problem.gradient(step, worker, before[worker])
            v[worker] = here + (1.0 - eta) * (v[worker] - there)
            u[worker] = (1.0 - eta) * u[worker] + eta * v[worker]
        before[worker] = x
        return u[worker]

    return estimate


# ---------------------------------------------------------------------- how it travels


def _direct(compress: Compress) -> Send:
    return lambda step, worker, end, said: compress(step, worker, said)


def _ef21(d: int, compress: Compress) -> Send:
    """c = C(v - g); g <- g + c; the row is g"""
    mirror: dict[tuple[str, int], Vector] = defaultdict(lambda: np.zeros(d))

    def send(step: int, worker: int, end: str, said: Vector) -> Vector:
        mirror[end, worker] = mirror[end, worker] + compress(step, worker, said - mirror[end, worker])
        return mirror[end, worker]

    return send


# ---------------------------------------------------------------------- the methods


def byz_ef21_sgdm(run: Run, *, eta: float, k: int) -> np.ndarray:
    """Liu, Li, Yi, Johansson, arXiv 2409.08640, with v and g from zero, as the authors' code has it for a9a: v_1 = eta g, g_1 = C(v_1)."""
    return run.trajectory(_polyak(run.problem, eta), _ef21(run.problem.d, top_k(k)))


def byz_ef21(run: Run, *, k: int) -> np.ndarray:
    """Byz-EF21 of Rammal et al., arXiv 2310.09804: g <- g + C(grad f_i - g) with the whole gradient (a problem with ``whole=True``)."""
    return run.trajectory(run.problem.gradient, _ef21(run.problem.d, top_k(k)))


def compressed_sgd(run: Run, *, k: int) -> np.ndarray:
    """The row is C(g)."""
    return run.trajectory(run.problem.gradient, _direct(top_k(k)))


def compressed_momentum(run: Run, *, eta: float, k: int) -> np.ndarray:
    """Momentum without feedback: the row is C(v)."""
    return run.trajectory(_polyak(run.problem, eta), _direct(top_k(k)))


def ef_signsgd(run: Run) -> np.ndarray:
    """Karimireddy et al., ICML 2019: p = g + e; the row is (||p||_1 / d) sign(p); e <- p - row.

    The paper has the step size inside p; as long as it is constant, that is the same trajectory.
    """
    waits: dict[tuple[str, int], Vector] = defaultdict(lambda: np.zeros(run.problem.d))

    def send(step: int, worker: int, end: str, said: Vector) -> Vector:
        p = said + waits[end, worker]
        row = scaled_sign(step, worker, p)
        waits[end, worker] = p - row
        return row

    return run.trajectory(run.problem.gradient, send)


def br_diana(run: Run, *, compress: Compress, omega: float) -> np.ndarray:
    """The row is h + Q(g - h); h <- h + Q(g - h) / (1 + omega). ``random_k(masks)`` has omega = d / k - 1."""
    shift: dict[tuple[str, int], Vector] = defaultdict(lambda: np.zeros(run.problem.d))

    def send(step: int, worker: int, end: str, said: Vector) -> Vector:
        h = shift[end, worker]
        difference = compress(step, worker, said - h)
        shift[end, worker] = h + difference / (1.0 + omega)
        return h + difference

    return run.trajectory(run.problem.gradient, send)


def byz_dm21(run: Run, *, eta: float, k: int) -> np.ndarray:
    """Li, Liu, Yi, AISTATS 2026: EF21 of u, with g from zero."""
    return run.trajectory(_double(run.problem, eta), _ef21(run.problem.d, top_k(k)))


def byz_vr_dm21(run: Run, *, eta: float, k: int) -> np.ndarray:
    """The same with a true STORM below."""
    return run.trajectory(_double_reduced(run.problem, eta), _ef21(run.problem.d, top_k(k)))


def rosdhb(run: Run, *, masks: Any, beta: float) -> np.ndarray:
    """Gupta et al., AISTATS 2026: m <- beta m + (1 - beta) (d / k) g on the step's mask, from m = 0, where the rules are; the row is m.

    ``masks[step]`` are the k indices of all workers. An attacker's message goes through the same average, one of its own.
    """
    average: dict[tuple[str, int], Vector] = defaultdict(lambda: np.zeros(run.problem.d))
    compress = shared_mask(masks)

    def send(step: int, worker: int, end: str, said: Vector) -> Vector:
        average[end, worker] = beta * average[end, worker] + (1.0 - beta) * compress(step, worker, said)
        return average[end, worker]

    return run.trajectory(run.problem.gradient, send)
