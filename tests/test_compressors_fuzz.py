"""Decoders on bytes that no honest peer sends; by the million: ``python benchmarks/fuzz_decoders.py --payloads=1000000``."""

import math
import os
import struct
from itertools import pairwise

import pytest
import torch

from lightning_byz.compressors import Compressor, Coordinates, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.random import generator
from lightning_byz.slice import Slice
from lightning_byz.testing.laws.compressors import require_total
from lightning_byz.testing.mutations import mutated
from lightning_byz.testing.rows import DTYPES
from tests.contracts.subjects import label
from tests.test_compressors import SUBJECTS

PAYLOADS = int(os.environ.get("FUZZ_PAYLOADS", "2000"))
SHAPES = [(6, 10), (3,), (0,), (8, 8), (30,)]
WHOLE = Coordinates(SHAPES)


def place(number: int, rule: Compressor) -> Coordinates:
    """Return all coordinates, or a slice of them where the compressor splits."""
    if number % 2 or not rule.splits:
        return WHOLE
    return Coordinates(SHAPES, Slice(64, 128, WHOLE.total, lambda partials: partials, lambda counts: counts))


@pytest.mark.parametrize("rule", [rule for rule in SUBJECTS if label(rule) != "LowRank(rank=4)"], ids=label)
def test_decoders_take_any_bytes(rule: Compressor) -> None:
    """Bytes that still are a message are among them, and bytes that are none."""
    draws, said = generator(0, "fuzz", label(rule)), {True: 0, False: 0}
    vector = torch.randn(WHOLE.total, generator=draws)
    entries = [rule.encode(vector.to(dtype), WHOLE, generator=draws) for dtype in DTYPES]
    for number in range(PAYLOADS):
        where, dtype = place(number, rule), number // 2 % len(DTYPES)
        part = entries[dtype].part(where.start, where.stop)
        said[require_total(rule, mutated(part, draws), where, DTYPES[dtype])] += 1
    assert min(said.values()) > PAYLOADS // 50


def read_by_hand(part: bytes, limit: int, count: int) -> list[float] | None:
    """Return what a sparse float32 message says, read number by number; None for what is none."""
    number, rest = divmod(len(part), 8)
    if rest or number > limit:
        return None
    values = struct.unpack(f"<{number}f", part[: 4 * number])
    index = struct.unpack(f"<{number}i", part[4 * number :])
    rises = all(low < high for low, high in pairwise(index))
    if not rises or not all(0 <= one < count for one in index) or not all(map(math.isfinite, values)):
        return None
    out = [0.0] * count
    for one, value in zip(index, values, strict=True):
        out[one] = value
    return out


@pytest.mark.parametrize("rule", [TopK(0.05), RandomK(0.1)], ids=label)
def test_sparse_messages_are_read_as_by_hand(rule: Compressor) -> None:
    draws, seen = generator(1), 0
    part = rule.encode(torch.randn(WHOLE.total, generator=draws), WHOLE, generator=draws).part(0, WHOLE.total)
    for _ in range(PAYLOADS):
        bytes_, out = mutated(part, draws), torch.empty(WHOLE.total)
        valid = bool(rule.decode(bytes_, WHOLE, generator=draws, out=out))
        expected = read_by_hand(bytes(bytes_.tolist()), rule.size(WHOLE, torch.float32) // 8, WHOLE.total)
        assert valid == (expected is not None)
        assert out.tolist() == (expected or [0.0] * WHOLE.total)
        seen += valid
    assert PAYLOADS // 50 < seen < PAYLOADS


def said(rule: Compressor, part: torch.Tensor, where: Coordinates = WHOLE) -> bool:
    return require_total(rule, part, where, torch.float32)


def sparse(values: list[float], index: list[int]) -> torch.Tensor:
    return torch.cat([torch.tensor(values).view(torch.uint8), torch.tensor(index, dtype=torch.int32).view(torch.uint8)])


def test_what_is_no_sparse_message() -> None:
    rule, last = TopK(k=3), WHOLE.total - 1
    for index in ([0, 1, last], [5], []):
        assert said(rule, sparse([1.0] * len(index), index))
    for index in ([1, 0], [4, 4], [-1, 2], [0, last + 1], [0, 2**31 - 1], [-(2**31)], [0, 1, 2, 3]):
        assert not said(rule, sparse([1.0] * len(index), index))
    for value in (math.nan, math.inf, -math.inf):
        assert not said(rule, sparse([1.0, value], [3, 4]))
    assert not said(rule, sparse([1.0], [3])[:-1])


def test_no_tensor_gets_more_than_its_share() -> None:
    """Five entries are as many as the tensors may have together; which have them matters."""
    rule = TopK(k=1, per="tensor")
    assert said(rule, sparse([1.0] * 4, [3, 60, 70, 140]))
    assert not said(rule, sparse([1.0] * 4, [3, 4, 70, 140]))


def test_codes_and_scales_that_do_not_exist() -> None:
    scale = torch.ones(1).view(torch.uint8)
    where = Coordinates([(5,)])
    assert said(Quantize(4), torch.cat([scale, torch.tensor([0x70, 0xE7, 0x07], dtype=torch.uint8)]), where)
    assert not said(Quantize(4), torch.cat([scale, torch.tensor([0xF0, 0xE7, 0x07], dtype=torch.uint8)]), where)
    assert not said(Quantize(4), torch.cat([scale, torch.tensor([0x70, 0xE7, 0x17], dtype=torch.uint8)]), where)
    assert said(ScaledSign(), torch.cat([scale, torch.tensor([0b11111], dtype=torch.uint8)]), where)
    assert not said(ScaledSign(), torch.cat([scale, torch.tensor([0b111111], dtype=torch.uint8)]), where)
    for wrong in (-1.0, math.nan, math.inf):
        bad = torch.tensor([wrong]).view(torch.uint8)
        assert not said(ScaledSign(), torch.cat([bad, torch.tensor([1], dtype=torch.uint8)]), where)
        assert not said(Quantize(8), torch.cat([bad, torch.full((5,), 127, dtype=torch.uint8)]), where)


def test_bytes_may_lie_anywhere() -> None:
    """Parts of a buffer begin where no number would."""
    for rule in SUBJECTS:
        where = Coordinates([(20, 30)])
        vector = torch.randn(600, generator=generator(2))
        part = rule.encode(vector, where, generator=generator(3)).part(0, 600)
        buffer, spread = torch.empty(len(part) + 3, dtype=torch.uint8), torch.empty(2 * len(part), dtype=torch.uint8)
        buffer[3:], spread[::2] = part, part
        outs = []
        for bytes_ in (part, buffer[3:], spread[::2]):
            out = torch.empty(600)
            assert rule.decode(bytes_, where, generator=generator(3), out=out)
            outs.append(out)
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])
