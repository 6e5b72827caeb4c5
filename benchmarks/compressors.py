"""How many bytes the compressors leave, and how long encoding and decoding take, in ratio to copying the vector.

    python benchmarks/compressors.py
    python benchmarks/compressors.py --coordinates='[2000, 1000000, 10000000]' --dtypes='[float32, bfloat16]'

Bytes are counted from the parts, cut in four, as a part of dense float32. Times are in copies into memory that has been touched before, the
fastest of three calls by the fastest of three copies just before them: the median over the rounds, the smallest and the largest. ``TopK(0.01)`` is
measured on several kinds of vectors, beside ``torch.topk`` of the absolute values and ``numpy.argpartition`` of them: normal numbers; a constant;
three values; zeros but for a thousandth; a vector that is large at every hundredth coordinate, which every stride that shares a factor with it
sees too much or too little of. The matrices that ``LowRank`` sees have a thousand columns.
"""

import itertools
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from tables import console, table
from torch import Tensor

from lightning_byz.compressors import (
    Cast,
    Compressor,
    Coordinates,
    Identity,
    LowRank,
    Quantize,
    RandomK,
    ScaledSign,
    TopK,
)

SUBJECTS: list[Compressor] = [
    Identity(),
    TopK(0.01),
    TopK(0.01, per="tensor"),
    RandomK(0.01),
    RandomK(0.01, shared=True),
    ScaledSign(),
    Quantize(4),
    Quantize(4, norm="max"),
    Quantize(8),
    Cast("bfloat16"),
    Cast("float16"),
    LowRank(4),
]
COLUMNS = 1000


def vectors(count: int) -> dict[str, Tensor]:
    """Return the kinds of vectors."""
    draws = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=draws)
    resonant = normal * 0.01
    resonant[::100] += 3.0
    return {
        "normal": normal,
        "constant": torch.ones(count),
        "three values": torch.randint(1, 4, (count,), generator=draws).float(),
        "mostly zero": torch.where(torch.rand(count, generator=draws) < 0.001, normal, 0.0),
        "resonant": resonant,
    }


def shapes(count: int) -> list[tuple[int, ...]]:
    """Return matrices of a thousand columns and a vector of the rest."""
    rows, rest = divmod(count, COLUMNS)
    tall = [min(1000, rows - low) for low in range(0, rows, 1000)]
    return [*((height, COLUMNS) for height in tall), (rest,)]


def sent(rule: Compressor, vector: Tensor, coordinates: Coordinates) -> int:
    """Return the bytes of all parts, of four slices where the compressor splits."""
    entries = rule.encode(vector, coordinates, generator=torch.Generator().manual_seed(1))
    blocks, ends = coordinates.blocks, {0, coordinates.total}
    if rule.splits:
        ends |= {min(len(blocks) * part // 4 * blocks.width, coordinates.total) for part in (1, 2, 3)}
    cuts = sorted(ends)
    return sum(entries.part(low, high).numel() for low, high in itertools.pairwise(cuts))


def seconds(subject: Callable[[], object]) -> float:
    started = time.perf_counter()
    subject()
    return time.perf_counter() - started


def copies(subjects: dict[str, Callable[[], object]], vector: Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the ratios of each subject's times to the copy of its round."""
    target = torch.zeros_like(vector)
    ratios: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            copy = min(seconds(lambda: target.copy_(vector)) for _ in range(3))
            taken = min(seconds(subject) for _ in range(3))
            if number:
                ratios[name].append(taken / copy)
    return ratios


def ends(rule: Compressor, vector: Tensor, coordinates: Coordinates) -> dict[str, Callable[[], object]]:
    """Return both ends of the way, alone and together."""
    total, out = coordinates.total, torch.zeros_like(vector)

    def encode() -> Tensor:
        return rule.encode(vector, coordinates, generator=torch.Generator().manual_seed(1)).part(0, total)

    def decode(part: Tensor) -> None:
        if not rule.decode(part, coordinates, generator=torch.Generator().manual_seed(1), out=out):
            raise RuntimeError(f"{rule} does not take its own part")

    made = encode()
    return {"encode": encode, "decode": lambda: decode(made), "both": lambda: decode(encode())}


def shown(ratios: list[float]) -> tuple[str, str]:
    return f"{median(ratios):.1f}", f"{min(ratios):.1f} - {max(ratios):.1f}"


def main(
    coordinates: list[int] = [10_000_000],  # noqa: B006
    dtypes: list[str] = ["float32"],  # noqa: B006
    *,
    rounds: int = 5,
    threads: int = 1,
) -> None:
    """Measure and print two tables per length and dtype.

    Args:
        coordinates: Lengths of vectors.
        dtypes: Of the vectors.
        rounds: How often each subject is timed, after once that is not counted.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    for count in coordinates:
        for dtype in dtypes:
            kinds = {name: vector.to(getattr(torch, dtype)) for name, vector in vectors(count).items()}
            console().print(all_rules(count, dtype, kinds["normal"], rounds))
            console().print(top_k(count, dtype, kinds, rounds))


def all_rules(count: int, dtype: str, vector: Tensor, rounds: int) -> object:
    """Return bytes and times of every compressor."""
    result = table(
        f"{count:,} coordinates, {dtype}",
        "compressor",
        "bytes / dense float32",
        "encode: copies",
        "from - to",
        "decode",
        "from - to",
    )
    where = Coordinates(shapes(count))
    for rule in SUBJECTS:
        ratios = copies(ends(rule, vector, where), vector, rounds)
        share = sent(rule, vector, where) / (4 * count)
        result.add_row(str(rule), f"{share:.3%}", *shown(ratios["encode"]), *shown(ratios["decode"]))
    return result


def top_k(count: int, dtype: str, kinds: dict[str, Tensor], rounds: int) -> object:
    """Return times of ``TopK`` on all kinds of vectors."""
    names = ("TopK(0.01), both ends: copies", "torch.topk", "numpy.argpartition")
    result = table(
        f"{count:,} coordinates, {dtype}", "vector", *(cell for name in names for cell in (name, "from - to"))
    )
    k = max(1, round(0.01 * count))
    for kind, vector in kinds.items():
        both = ends(TopK(0.01), vector, Coordinates([(count,)]))["both"]
        subjects = {"both": both, "topk": lambda vector=vector: vector.abs().topk(k)}
        if vector.dtype in (torch.float32, torch.float64):
            subjects["partition"] = lambda vector=vector: np.argpartition(np.abs(vector.numpy()), count - k)
        ratios = copies(subjects, vector, rounds)
        result.add_row(kind, *(cell for name in ("both", "topk", "partition") for cell in cells(ratios.get(name))))
    return result


def cells(ratios: list[float] | None) -> tuple[str, str]:
    return ("-", "-") if ratios is None else shown(ratios)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
