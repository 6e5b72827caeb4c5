"""How long encoding, location and decoding take, in copies, and how many bytes a worker sends.

    python benchmarks/codes.py
    python benchmarks/codes.py --coordinates='[100000, 1000000, 10000000]' --rounds=3

Encoding is measured in copies of a gradient, location and decoding in copies of all received rows, both into memory that has been touched before: the
fastest of three calls by the fastest of three copies just before them; the median over the rounds, the smallest and the largest. One worker of
each group lies. Targets: encoding 3 copies at most, location and decoding 8 together.
"""

from collections.abc import Callable
from statistics import median

import torch
from compressors import seconds
from jsonargparse import auto_cli
from tables import console, table

from lightning_byz.codes import Code, Cyclic, Repetition, Solon

SUBJECTS: list[tuple[Code, int]] = [
    (Solon(2, 4), 8),
    (Solon(3, 2), 8),
    (Solon(1, 6), 8),
    (Solon(1, 1), 3),
    (Repetition(1), 3),
    (Repetition(2), 5),
    (Cyclic(1), 8),
]


def copies(subject: Callable[[], object], copy: Callable[[], object], rounds: int) -> list[float]:
    """Return the ratios of the times of all rounds but the first."""
    ratios = []
    for _ in range(rounds + 1):
        once = min(seconds(copy) for _ in range(3))
        ratios.append(min(seconds(subject) for _ in range(3)) / once)
    return ratios[1:]


def measured(code: Code, workers: int, count: int, rounds: int) -> dict[str, list[float]]:
    """Return copies of encoding per gradient, of location, of decoding, and of both together."""
    draws = torch.Generator().manual_seed(0)
    where, parts = code.coordinates(count), code.parts(workers)
    gradients = torch.randn(1 + max(map(max, parts)), count, generator=draws)
    rows = torch.stack(
        [code.encode(worker, [*gradients[[*held]]], where, workers=workers) for worker, held in enumerate(parts)]
    )
    rows[[group[-1] for group in code.groups(workers)]] *= -100
    own, row, out = [*gradients[[*parts[0]]]], torch.zeros_like(rows[0]), torch.zeros(count)
    like, one = torch.zeros_like(rows), torch.zeros_like(own[0])

    def found() -> list[int]:
        return code.locate(code.project(rows, where, generator=draws))

    liars = found()
    stack: Callable[[], object] = lambda: like.copy_(rows)  # noqa: E731
    encoding = copies(lambda: code.encode(0, own, where, workers=workers, out=row), lambda: one.copy_(own[0]), rounds)
    return {
        "encode, per gradient": [ratio / len(own) for ratio in encoding],
        "locate": copies(found, stack, rounds),
        "decode": copies(lambda: code.decode(rows, liars, where, out=out), stack, rounds),
        "both": copies(lambda: code.decode(rows, found(), where, out=out), stack, rounds),
    }


def main(
    coordinates: list[int] = [10_000_000],  # noqa: B006
    *,
    rounds: int = 5,
    threads: int = 1,
) -> None:
    """Measure and print a table per length.

    Args:
        coordinates: Lengths of gradients.
        rounds: How often each subject is timed, after once that is not counted.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    for count in coordinates:
        result = table(
            f"{count:,} coordinates, float32",
            "code",
            "workers",
            "numbers sent / d",
            *("encode, per gradient", "from - to", "locate", "from - to", "decode", "from - to", "both", "from - to"),
        )
        for code, workers in SUBJECTS:
            cells = [
                text
                for ratios in measured(code, workers, count, rounds).values()
                for text in (f"{median(ratios):.1f}", f"{min(ratios):.1f} - {max(ratios):.1f}")
            ]
            result.add_row(str(code), str(workers), f"{code.coordinates(count).coded / count:.4f}", *cells)
        console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
