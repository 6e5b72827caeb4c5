"""Decoders of compressors on bytes that no honest peer sends, by the million.

    python benchmarks/fuzz_decoders.py --payloads=1000000
    python benchmarks/fuzz_decoders.py --payloads=10000 --compressors='[TopK]'

Every payload is a part of some vector, whole or a slice of it, in one of four dtypes, changed, cut, lengthened or replaced by random bytes.
Decoding must not raise, write beyond its place, write what is not finite, or leave anything but zeros of what it takes for no message; the first
payload of which that is not so ends the run, with its compressor and number.
"""

import time

import torch
from jsonargparse import auto_cli
from tables import console, table

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
from lightning_byz.random import generator
from lightning_byz.slice import Slice
from lightning_byz.testing.laws.compressors import require_total
from lightning_byz.testing.mutations import mutated
from lightning_byz.testing.rows import DTYPES

SUBJECTS: list[Compressor] = [
    Identity(),
    TopK(0.05),
    TopK(0.1, per="tensor"),
    RandomK(0.05),
    RandomK(0.1, shared=True),
    ScaledSign(),
    Quantize(2),
    Quantize(4),
    Quantize(8, norm="max", bucket=16),
    Cast("bfloat16"),
    Cast("float16"),
    LowRank(2),
]
SHAPES = [(6, 10), (3,), (0,), (8, 8), (30,)]
Prepared = tuple[torch.Tensor, Coordinates, torch.dtype]


def prepared(rule: Compressor) -> list[Prepared]:
    """Return parts of vectors, whole and of their second blocks, in all dtypes."""
    whole, result = Coordinates(SHAPES), []
    here = Slice(64, 128, whole.total, lambda partials: partials, lambda counts: counts)
    for number, dtype in enumerate(DTYPES):
        draws = generator(number, "vector")
        for vector in (torch.randn(whole.total, generator=draws), torch.zeros(whole.total)):
            entries = rule.encode(vector.to(dtype), whole, generator=draws)
            result.append((entries.part(0, whole.total), whole, dtype))
            if rule.splits:
                result.append((entries.part(64, 128), Coordinates(SHAPES, here), dtype))
    return result


def main(payloads: int = 10_000, compressors: list[str] = [], *, seed: int = 0) -> None:  # noqa: B006
    """Decode mutated payloads and print how many of them are messages still.

    Args:
        payloads: Of each compressor.
        compressors: Only those whose name contains one of these; all, if empty.
        seed: Of the mutations.
    """
    torch.set_num_threads(1)
    result = table("Mutated payloads", "compressor", "payloads", "messages still", "seconds")
    for rule in SUBJECTS:
        if compressors and not any(name in str(rule) for name in compressors):
            continue
        started, parts, draws, valid = time.perf_counter(), prepared(rule), generator(seed, "fuzz", str(rule)), 0
        for number in range(payloads):
            part, where, dtype = parts[number % len(parts)]
            try:
                valid += require_total(rule, mutated(part, draws), where, dtype)
            except Exception as error:
                raise RuntimeError(f"{rule}, payload {number} of seed {seed}") from error
        result.add_row(str(rule), f"{payloads:,}", f"{valid:,}", f"{time.perf_counter() - started:.0f}")
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
