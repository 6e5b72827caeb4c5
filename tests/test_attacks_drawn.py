"""Attacks that draw: noise and flipped bits, the same wherever the coordinates are cut."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import BitFlip, Gaussian, Sight
from lightning_byz.blocks import Blocks, block_size
from lightning_byz.random import by_block
from lightning_byz.stack import Slice, Stack
from tests.attack_reference import different_bits
from tests.test_attacks import sent

FORMATS = {torch.float16: "e", torch.float32: "f", torch.float64: "d"}


def cut(rows: Tensor, start: int, stop: int) -> Stack:
    """A slice of attackers that need to know nothing of the other slices."""

    def unused(tensor: Tensor) -> Any:
        raise AssertionError("nothing is gathered")

    return Stack(rows[:, start:stop], slice=Slice(start, stop, rows.shape[1], unused, unused))


def test_blocks_have_generators_of_their_own() -> None:
    def numbers(start: int, bounds: list[tuple[int, int]], seed: int = 3) -> list[tuple[int, int, int]]:
        source = torch.Generator().manual_seed(seed)
        return [(low, high, block.initial_seed()) for low, high, block in by_block(source, Blocks(start, bounds, 64))]

    whole = numbers(0, [(0, 64), (64, 128), (128, 150)])
    assert len({seed for *_, seed in whole}) == 3
    assert [seed for *_, seed in numbers(64, [(0, 64), (64, 86)])] == [seed for *_, seed in whole[1:]]
    assert not {seed for *_, seed in numbers(0, [(0, 64), (64, 128), (128, 150)], seed=4)} & {
        seed for *_, seed in whole
    }
    source = torch.Generator().manual_seed(3)
    first, second = (
        [block.initial_seed() for *_, block in by_block(source, Blocks(0, [(0, 64)], 64))] for _ in range(2)
    )
    assert first != second


def test_noise_is_normal_and_nobody_sends_the_same() -> None:
    d = 40_000
    noise = sent(Gaussian(3.0), Stack(torch.full((5, d), 1e9).double()), [1, 4, 2])
    ordered = noise.sort(dim=1).values
    expected = 3 * math.sqrt(2) * torch.special.erfinv(2 * (torch.arange(d).double() + 0.5) / d - 1)
    inner = slice(d // 100, -d // 100)
    torch.testing.assert_close(ordered[:, inner], expected[inner].expand(3, -1), atol=0.15, rtol=0)
    assert noise.unique().numel() == 3 * d
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.03
    width = block_size(d)
    assert float(torch.corrcoef(noise[0, : 2 * width].reshape(2, width))[0, 1].abs()) < 0.3
    assert sent(Gaussian(1e6), Stack(torch.ones(3, 500).half()), [1]).abs().max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize("attack", [Gaussian(), BitFlip(flips=3, coordinates=20), BitFlip(coordinates=900)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_slice_draws_what_the_whole_draws(attack, dtype) -> None:
    rows = torch.randn(4, 1000).to(dtype)
    whole = sent(attack, Stack(rows), [3, 1])
    for ends in ([0, 64, 512, 1000], [0, 0, 960, 1000, 1000]):
        pieces = [sent(attack, cut(rows, start, stop), [3, 1]) for start, stop in pairwise(ends)]
        assert torch.equal(torch.cat(pieces, dim=1).view(torch.uint8), whole.view(torch.uint8))
    assert not torch.equal(attack.replace(Sight(Stack(rows), [3, 1], torch.Generator().manual_seed(9))), whole)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("flips", "coordinates"), [(1, 1), (2, 16), (5, 7), (3, 49), (16, 60)])
def test_exactly_so_many_bits_are_flipped(dtype: torch.dtype, flips: int, coordinates: int) -> None:
    rows = torch.randn(4, 100, generator=torch.Generator().manual_seed(5)).to(dtype)
    before = rows.clone()
    got = sent(BitFlip(flips, coordinates=coordinates), Stack(rows), [2, 0])
    assert torch.equal(rows, before)
    for own, row in zip(rows[[2, 0]], got, strict=True):
        flipped = [
            different_bits(left, right, FORMATS[dtype]) for left, right in zip(own.tolist(), row.tolist(), strict=True)
        ]
        # a signalling NaN may become a quiet one on its way through Python, which sets one bit more
        exact = [
            len(bits) for bits, number in zip(flipped, row.tolist(), strict=True) if bits and not math.isnan(number)
        ]
        assert exact == [flips] * len(exact)
        assert sum(map(bool, flipped)) == coordinates


def test_all_bits_of_all_coordinates_are_in_reach() -> None:
    """Places are drawn evenly: each of 50 coordinates and of 16 bits in its share of 2000 attackers."""
    rows = torch.full((2000, 50), 1.0).bfloat16()
    changed = sent(BitFlip(2, coordinates=10), Stack(rows), list(range(2000))).view(torch.int16) ^ rows.view(
        torch.int16
    )
    hits = (changed != 0).sum(0)
    assert int(hits.sum()) == 20_000
    assert 320 < int(hits.min()) <= int(hits.max()) < 480
    bits = torch.stack([(changed >> place & 1).sum() for place in range(16)])
    assert int(bits.sum()) == 40_000
    assert 2300 < int(bits.min()) <= int(bits.max()) < 2700


def test_more_than_there_are() -> None:
    ones = torch.ones(3, 5)
    assert torch.equal(
        sent(BitFlip(32, coordinates=9), Stack(ones), [1]).view(torch.int32), ~ones[:1].view(torch.int32)
    )
    with pytest.raises(ValueError, match="flips must be at most the 16 bits of a number in these rows, not 17"):
        sent(BitFlip(17), Stack(ones.half()), [1])
