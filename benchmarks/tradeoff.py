"""What redundancy buys: for each code that n workers can form, gradients, bytes, time and liars, beside rules of as many gradients.

    python benchmarks/tradeoff.py
    python benchmarks/tradeoff.py --workers='[12]' --coordinates=100000

For each n, every s and r_c of which groups of 2 s + r_c divide n: how many times the gradients of training without redundancy a worker computes,
the bytes it sends for each number of a gradient, the time to encode, and to locate and decode (median, one thread, one liar in each group), and the
most liars of a group that were still decoded: in each of 12 draws for each of three lies, at 4,000 coordinates, the mean came out to 1e-4.

Beside them rules without a code for as many gradients: every worker computes on as many samples of its own. The figure is the squared distance of the
aggregate from the true gradient, in units of that of the code's exact mean, the worst of sign flip, IPM and ALIE by s workers: above 1 the code is
nearer, below 1 the rule. With --spread workers' own gradients differ by so many times the noise of a message, in each coordinate; the mean of all
parts is what a code is exact for, so that this costs it nothing.
"""

from collections.abc import Callable
from statistics import median

import torch
from compressors import seconds
from jsonargparse import auto_cli
from tables import console, table
from torch import Tensor

from lightning_byz.aggregators import CTMA, Aggregator, Bulyan, CoordinateMedian
from lightning_byz.attacks import ALIE, IPM, Attack, SignFlip
from lightning_byz.attacks.sight import Sight
from lightning_byz.codes import Solon
from lightning_byz.errors import ToleranceError, TooManyLiars
from lightning_byz.stack import Stack

RULES: dict[str, Aggregator] = {
    "median": CoordinateMedian(),
    "CTMA": CTMA(CoordinateMedian()),
    "Bulyan": Bulyan(),
}
ATTACKS: list[Attack] = [SignFlip(), IPM(), ALIE()]
LIES: list[Callable[[Tensor], Tensor]] = [
    lambda rows: -100 * rows,
    lambda rows: torch.full_like(rows, -100.0),
    lambda rows: rows + torch.linspace(-1, 1, rows.shape[1]),
]
SMALL, DRAWS = 4000, 12


def codes(workers: int) -> list[Solon]:
    """Return every code whose groups divide the workers, by size of a group.

    Example:
        >>> [(code.s, code.compression) for code in codes(4)]
        [(1, 1), (1, 2)]

    """
    sizes = [size for size in range(3, workers + 1) if workers % size == 0]
    return [Solon(s, size - 2 * s) for size in sizes for s in range(1, (size + 1) // 2)]


def coded(code: Solon, workers: int, count: int) -> tuple[Tensor, Tensor]:
    """Return rows and the mean that they stand for."""
    parts = code.parts(workers)
    gradients = torch.randn(1 + parts[-1][0], count, generator=torch.Generator().manual_seed(0))
    where = code.coordinates(count)
    rows = [code.encode(worker, [gradients[part]], where, workers=workers) for worker, (part,) in enumerate(parts)]
    return torch.stack(rows), gradients.mean(0)


def decoded(code: Solon, rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the mean without those who do not fit."""
    where = code.coordinates(count)
    liars = code.locate(code.project(rows, where, generator=torch.Generator().manual_seed(seed)))
    return code.decode(rows, liars, where)


def most_liars(code: Solon) -> int:
    """Return how many liars of one group were decoded, whoever they were and whichever of the lies they told."""
    honest, mean = coded(code, code.size, SMALL)
    for count in range(1, code.size + 1):
        for draw in range(DRAWS):
            who = torch.randperm(code.size, generator=torch.Generator().manual_seed(draw))[:count]
            for lie in LIES:
                rows = honest.clone()
                rows[who] = lie(honest[who])
                try:
                    error = (decoded(code, rows, SMALL, draw) - mean).norm() / mean.norm()
                except TooManyLiars:
                    return count - 1
                if error > 1e-4:
                    return count - 1
    return code.size


def times(code: Solon, workers: int, count: int, rounds: int) -> tuple[float, float]:
    """Return the milliseconds of encoding one row, and of location and decoding."""
    rows, _ = coded(code, workers, count)
    rows[[group[-1] for group in code.groups(workers)]] *= -100
    where, gradient, out = code.coordinates(count), torch.randn(count), torch.zeros_like(rows[0])
    encode: Callable[[], object] = lambda: code.encode(0, [gradient], where, workers=workers, out=out)  # noqa: E731
    decode: Callable[[], object] = lambda: decoded(code, rows, count)  # noqa: E731
    encode()
    decode()
    return tuple(1e3 * median(seconds(one) for _ in range(rounds)) for one in (encode, decode))  # type: ignore[return-value]


def off(rule: Aggregator, code: Solon, workers: int, spread: float) -> float | None:
    """Return how far a rule of as many gradients is from the truth, in units of the code's distance; ``None`` where it does not tolerate s."""
    noise, own = torch.randn(2, workers, SMALL, generator=torch.Generator().manual_seed(1))
    truth, groups, worst = torch.full((SMALL,), 0.1), workers // code.size, 0.0
    for attack in ATTACKS:
        rows = truth + noise + spread * (own - own.mean(0))
        liars = list(range(code.s))
        sight = Sight(Stack(rows, f=code.s), liars, torch.Generator().manual_seed(2), defence=rule)
        rows[liars] = attack.replace(sight)
        try:
            worst = max(worst, float((rule(Stack(rows, f=code.s)) - truth).square().sum()))
        except ToleranceError:
            return None
    return worst / (SMALL / groups)


def main(
    workers: list[int] = [12, 16, 24],  # noqa: B006
    *,
    coordinates: int = 1_000_000,
    rounds: int = 5,
    spread: float = 0.0,
) -> None:
    """Measure and print a table per number of workers.

    Args:
        workers: Numbers of workers.
        coordinates: Of a gradient, for times.
        rounds: How often each is timed.
        spread: Of the workers' own gradients about the true one, in units of the noise of a message.
    """
    torch.set_num_threads(1)
    for n in workers:
        result = table(
            f"{n} workers, {coordinates:,} coordinates in float32",
            *("s, r_c", "gradients", "bytes per number", "encode ms", "locate, decode ms", "liars decoded", *RULES),
        )
        for code in codes(n):
            told = [off(rule, code, n, spread) for rule in RULES.values()]
            encode, decode = times(code, n, coordinates, rounds)
            sent = 4 * code.coordinates(coordinates).coded / coordinates
            result.add_row(
                f"{code.s}, {code.compression}",
                f"{code.size} x",
                f"{sent:.3f}",
                f"{encode:.2f}",
                f"{decode:.1f}",
                str(most_liars(code)),
                *("-" if one is None else f"{one:.2f}" for one in told),
            )
        console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
