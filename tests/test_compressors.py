"""Compressors: the contract, values worked out by hand, bytes, and what is refused."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_byz import compressors
from lightning_byz.compressors import (
    Cast,
    Compressor,
    Coordinates,
    Entries,
    Identity,
    LowRank,
    Quantize,
    RandomK,
    ScaledSign,
    TopK,
    selection,
)
from lightning_byz.random import generator
from lightning_byz.slice import Slice, whole_in_blocks
from lightning_byz.stack import Stack
from lightning_byz.testing.cutting import on_slices
from lightning_byz.testing.laws import COMPRESSOR_LAWS, Law
from tests.contracts.subjects import label, seed_of

SUBJECTS: list[Compressor] = [
    Identity(),
    TopK(0.05),
    TopK(k=1),
    TopK(1.0),
    TopK(0.1, per="tensor"),
    TopK(k=5, per="tensor"),
    RandomK(0.05),
    RandomK(0.7),
    RandomK(k=3, shared=True),
    RandomK(0.1, per="tensor"),
    RandomK(0.1, per="tensor", shared=True),
    RandomK(0.05, scaled=False),
    ScaledSign(),
    Quantize(2),
    Quantize(4),
    Quantize(8),
    Quantize(4, norm="max"),
    Quantize(4, bucket=16),
    Quantize(8, bucket=200, norm="max"),
    Quantize(8, bucket=None),
    Cast("bfloat16"),
    Cast("float16"),
    LowRank(1),
    LowRank(4),
]
PIECES = {"Compressor", "Coordinates", "Dense", "Entries", "Packed", "Sparse"}


def both_ways(rule: Compressor, vector: Tensor, shapes: Sequence[tuple[int, ...]] = (), key: int = 0) -> Tensor:
    """Return what comes back of a vector."""
    where, out = Coordinates(shapes or [(len(vector),)]), torch.full_like(vector, float("nan"))
    part = rule.encode(vector, where, generator=generator(key, "draw")).part(0, len(vector))
    assert rule.decode(part, where, generator=generator(key, "draw"), out=out)
    return out


def of(*numbers: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize("law", COMPRESSOR_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("rule", SUBJECTS, ids=label)
def test_compressors_keep_the_laws(rule: Compressor, law: Law) -> None:
    law.hold(rule, cases=30, seed=seed_of(rule))


def test_every_compressor_is_among_them() -> None:
    assert {type(rule).__name__ for rule in SUBJECTS} == set(compressors.__all__) - PIECES


# What comes back, by hand


def test_top_k_keeps_the_largest_and_ties_to_the_lowest_index() -> None:
    assert both_ways(TopK(k=2), of(1, -3, 0.5, 3, 3)).tolist() == [0, -3, 0, 3, 0]
    assert both_ways(TopK(0.5), of(2, 2, 2, 2)).tolist() == [2, 2, 0, 0]
    assert both_ways(TopK(k=2), of(0, 0, 0, -1)).tolist() == [0, 0, 0, -1]


def test_top_k_of_each_tensor() -> None:
    shapes = [(3,), (2, 2), (0,), ()]
    vector = of(9, 8, 7, 1, 2, 3, 2, 0.5)
    assert both_ways(TopK(k=1, per="tensor"), vector, shapes).tolist() == [9, 0, 0, 0, 0, 3, 0, 0.5]
    assert both_ways(TopK(0.5, per="tensor"), vector, shapes).tolist() == [9, 8, 0, 0, 2, 3, 0, 0.5]
    assert both_ways(TopK(k=3, per="tensor"), vector, shapes).tolist() == [9, 8, 7, 0, 2, 3, 2, 0.5]


def test_random_k_multiplies_what_it_keeps() -> None:
    for key in range(20):
        back = both_ways(RandomK(0.25), torch.arange(1.0, 9.0), key=key)
        kept = back.nonzero().flatten()
        assert len(kept) == 2
        assert torch.equal(back[kept], 4 * (kept + 1.0))
        assert (both_ways(RandomK(k=2, scaled=False), torch.ones(8), key=key) == 1).sum() == 2


def test_random_k_scales_each_tensor_by_its_own_share() -> None:
    back = both_ways(RandomK(k=2, per="tensor"), torch.ones(12), [(2,), (10,)])
    assert back[:2].tolist() == [1, 1]
    assert sorted(back[2:].tolist()) == [0] * 8 + [5, 5]


def test_random_k_keeps_every_coordinate_as_often() -> None:
    counts = sum(both_ways(RandomK(k=3, scaled=False), torch.ones(10), key=key) for key in range(2000))
    assert isinstance(counts, Tensor)
    assert (counts - 600).abs().max() < 6 * (2000 * 0.3 * 0.7) ** 0.5


def test_a_shared_mask_is_one_mask() -> None:
    rule = RandomK(0.1, shared=True)
    assert rule.shared
    assert not RandomK(0.1).shared
    one, other = (both_ways(rule, torch.full((300,), value)) for value in (1.0, -2.0))
    assert torch.equal(one * -2, other)


def test_scaled_sign_by_hand() -> None:
    assert both_ways(ScaledSign(), of(1, -3, 0, 4)).tolist() == [2, -2, 2, 2]
    assert both_ways(ScaledSign(), of(0, -0.0)).tolist() == [0, 0]


def test_quantize_by_hand() -> None:
    """Levels of the largest value stay; what lies between two of them becomes either, as often as it is near."""
    grid = torch.arange(-7.0, 8.0)
    torch.testing.assert_close(both_ways(Quantize(4, norm="max"), grid), grid)
    backs = torch.stack([both_ways(Quantize(2), of(3, -4, 0), key=key) for key in range(4000)])
    assert set(backs.flatten().tolist()) == {-5.0, -0.0, 0.0, 5.0} or set(backs.flatten().tolist()) == {-5.0, 0.0, 5.0}
    torch.testing.assert_close(backs.mean(0), of(3, -4, 0), atol=0.25, rtol=0.0)


def test_cast_rounds_to_nearest_and_saturates() -> None:
    assert both_ways(Cast("bfloat16"), of(1 + 2**-9, 1 + 3 * 2**-9, 3.4028235e38)).tolist() == [
        1,
        1 + 2**-7,
        torch.finfo(torch.bfloat16).max,
    ]
    assert both_ways(Cast("float16"), of(1e9, -1e9, 65504, 2**-25, 2**-24)).tolist() == [
        65504,
        -65504,
        65504,
        0,
        2**-24,
    ]
    assert both_ways(Cast("bfloat16"), of(65504, dtype=torch.float16)).tolist() == [65504]
    assert both_ways(Cast("float16"), of(1e300, dtype=torch.float64)).tolist() == [65504]


def test_low_rank_keeps_matrices_of_its_rank() -> None:
    draws = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 2, generator=draws, dtype=torch.float64) @ torch.randn(
        2, 30, generator=draws, dtype=torch.float64
    )
    vector = torch.cat([matrix.flatten(), torch.ones(3, dtype=torch.float64)])
    torch.testing.assert_close(both_ways(LowRank(2), vector, [(20, 5, 6), (3,)]), vector)
    once = both_ways(LowRank(1), vector, [(20, 30), (3,)])
    assert torch.linalg.matrix_rank(once[:600].view(20, 30)) == 1
    assert torch.equal(once[600:], vector[600:])
    best = torch.linalg.svdvals(matrix)[1]
    assert best - 1e-9 <= (once - vector).norm() <= matrix.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", SUBJECTS, ids=label)
def test_the_largest_numbers_stay_finite(rule: Compressor, dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, 2.0**480)
    for vector in (
        torch.full((600,), largest, dtype=dtype),
        torch.full((600,), torch.finfo(dtype).tiny / 4, dtype=dtype),
    ):
        vector[::2] *= -1
        assert both_ways(rule, vector, [(20, 30)]).isfinite().all()


# Bytes


@pytest.mark.parametrize("d", [5000, 100_000, 10_000_000])
@pytest.mark.parametrize(("rule", "limit"), [(TopK(0.01), 0.021), (ScaledSign(), 0.033), (Quantize(4), 0.13)], ids=str)
def test_parts_are_small(rule: Compressor, limit: float, d: int) -> None:
    """Counted from the parts of four slices, of a vector that a draw of 10M coordinates would only make slower."""
    where = Coordinates([(d,)])
    entries = rule.encode(torch.linspace(-1, 1, d), where, generator=generator(0))
    blocks = len(where.blocks)
    ends = [min(blocks * place // 4 * where.blocks.width, d) for place in range(4)] + [d]
    sent = [entries.part(low, high) for low, high in pairwise(ends)]
    assert sum(part.numel() for part in sent) <= limit * 4 * d


def test_parts_of_short_vectors_are_small() -> None:
    where = Coordinates([(2000,)])
    assert TopK(0.01).size(where, torch.float32) == 0.02 * 8000
    assert ScaledSign().size(where, torch.float32) <= 0.033 * 8000
    assert Quantize(4).size(where, torch.float32) <= 0.13 * 8000


def test_sizes_by_hand() -> None:
    where = Coordinates([(20, 30), (400,)])
    sizes = {
        Identity(): 4000,
        TopK(0.01): 10 * 8,
        TopK(k=3, per="tensor"): 6 * 8,
        RandomK(0.01): 10 * 8,
        RandomK(0.01, shared=True): 10 * 4,
        ScaledSign(): 4 + 125,
        Quantize(4): 2 * 4 + 500,
        Quantize(2, bucket=None): 4 + 250,
        Cast(): 2000,
        LowRank(2): (2 * 50 + 400) * 4,
    }
    assert {rule: rule.size(where, torch.float32) for rule in sizes} == sizes
    assert TopK(0.01).size(where, torch.float64) == 10 * 12
    assert ScaledSign().size(where, torch.float64) == 8 + 125


def test_constants_by_hand() -> None:
    where = Coordinates([(20, 30), (400,)])
    assert (TopK(0.01).alpha(where), TopK(0.01).omega(where)) == (0.01, None)
    assert TopK(k=3, per="tensor").alpha(where) == 3 / 600
    assert (RandomK(0.01).alpha(where), RandomK(0.01).omega(where)) == (None, 99)
    assert (RandomK(0.8).alpha(where), RandomK(0.8).omega(where)) == (0.75, 0.25)
    assert (RandomK(0.01, scaled=False).alpha(where), RandomK(0.01, scaled=False).omega(where)) == (0.01, None)
    assert (ScaledSign().alpha(where), ScaledSign().omega(where)) == (0.001, None)
    assert Quantize(4).omega(where) == pytest.approx(512 / 196)
    assert Quantize(4).alpha(where) is None
    assert Quantize(2).omega(where) == pytest.approx(512**0.5)
    assert Quantize(8).alpha(where) == pytest.approx(1 - 512 / (4 * 127**2))
    assert Quantize(4, bucket=None).omega(where) == pytest.approx(1000**0.5 / 7)
    assert (Cast().alpha(where), Cast("float16").alpha(where), Cast().omega(where)) == (1 - 2**-16, 1 - 2**-22, None)
    assert (LowRank(4).alpha(where), LowRank(4).omega(where)) == (0.2, None)
    assert (Identity().alpha(where), Identity().omega(where)) == (1, 0)


# The selection


def slowly(vector: Tensor, k: int) -> list[int]:
    """Return where the largest are, by a sort of pairs."""
    return sorted(sorted(range(len(vector)), key=lambda place: (-abs(float(vector[place])), place))[:k])


def long_vectors() -> dict[str, Tensor]:
    d, draws = 200_003, torch.Generator().manual_seed(3)
    normal = torch.randn(d, generator=draws)
    hidden = torch.zeros(d)
    hidden[torch.from_numpy(selection._places(d))] = 1.0  # what the sample sees is not what there is
    waves = normal * 0.01
    waves[::100] += 3
    return {
        "normal": normal,
        "constant": torch.ones(d),
        "three values": torch.randint(1, 4, (d,), generator=draws).float(),
        "mostly zero": torch.where(torch.rand(d, generator=draws) < 0.001, normal, 0.0),
        "seen wrongly": hidden,
        "resonant": waves,
        "halves": normal.half(),
        "doubles": normal.double(),
    }


@pytest.mark.parametrize("name", long_vectors())
def test_the_largest_of_long_vectors(name: str) -> None:
    vector = long_vectors()[name]
    for k in (1, 2000, 2001, 30_000, 200_000):
        found = selection.largest(vector, k)
        order = torch.sort(vector.double().abs(), descending=True, stable=True).indices[:k]
        assert torch.equal(found, order.sort().values)


def test_the_way_of_other_devices_finds_the_same() -> None:
    for seed in range(30):
        vector = torch.randn(500, generator=torch.Generator().manual_seed(seed)).mul(3).round()
        k = 1 + seed * 7
        assert selection._on_device(selection.magnitudes(vector), k).tolist() == slowly(vector, k)


@pytest.mark.parametrize("rule", [TopK(0.1), TopK(0.2, per="tensor")], ids=label)
def test_slices_make_as_many_collectives_whatever_the_values(rule: TopK) -> None:
    """Also a slice without a coordinate, of a vector that has none above zero."""
    shapes, counts = [(100,), (60, 5), (0,)], set()
    for vector in (torch.zeros(400), torch.arange(400.0), torch.ones(400)):
        for ends in ([0, 64, 64, 400], [0, 400], [0, 0, 320, 400]):
            seen = on_slices(lambda part: counted(rule, part, shapes), Stack(vector[None]), ends)
            counts |= set(seen)
    assert len(counts) == 1


def counted(rule: Compressor, part: Stack, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    calls, own = {"gather": 0, "add": 0}, part.slice
    assert own is not None

    def counting(name: str, function: Any) -> Any:
        def call(tensor: Tensor) -> Tensor:
            calls[name] += 1
            return function(tensor)

        return call

    here = Slice(own.start, own.stop, own.total, counting("gather", own.gather), counting("add", own.add))
    rule.encode(part.vectors[0], Coordinates(shapes, here), generator=generator(0))
    return calls["gather"], calls["add"]


def test_the_whole_of_a_slice_has_its_blocks() -> None:
    here = whole_in_blocks(1000, 100)
    assert Coordinates([(1000,)], here).whole.blocks.width == 100
    assert Coordinates([(1000,)]).whole.blocks.width == 64


# What is refused

REFUSED = {
    "TopK()": "TopK(ratio=None, k=None): give either a ratio",
    "TopK(0.1, k=3)": "give either a ratio",
    "TopK(0.0)": "ratio must be in (0, 1]",
    "TopK(1.5)": "ratio must be in (0, 1]",
    "TopK(float('nan'))": "ratio must be in (0, 1]",
    "TopK(True)": "ratio must be in (0, 1]",
    "RandomK(-0.1)": "RandomK(ratio=-0.1): ratio must be in (0, 1]",
    "TopK(k=0)": "TopK(k=0): k must be a whole number of coordinates from 1 on",
    "RandomK(k=True)": "k must be a whole number",
    "Quantize(3)": "bits must be 2, 4 or 8",
    "Quantize(True)": "bits must be 2, 4 or 8",
    "Quantize(bucket=0)": "bucket must be a whole number of coordinates from 1 on",
    "Quantize(bucket=True)": "bucket must be a whole number",
    "LowRank(0)": "rank must be a whole number from 1 on",
    "LowRank(True)": "rank must be a whole number",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_arguments_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(REFUSED[text])):
        eval(text, {**vars(compressors)})


def test_vectors_that_do_not_fit_are_refused() -> None:
    where = Coordinates([(3, 2), (4,)])
    with pytest.raises(ValueError, match=r"TopK\(k=11\) keeps more coordinates than there are: the vector has 10"):
        TopK(k=11).check(where)
    with pytest.raises(ValueError, match=r"RandomK\(k=7\).*the largest parameter tensor has 6"):
        RandomK(k=7, per="tensor").check(where)
    with pytest.raises(ValueError, match=r"LowRank\(rank=2\) compresses matrices.*no parameter tensor is one"):
        LowRank(2).check(where)
    with pytest.raises(ValueError, match=r"RandomK sends int32 indices"):
        RandomK(0.1).check(Coordinates([(2**31 + 1,)]))
    for rule in (TopK(k=10), TopK(k=6, per="tensor"), LowRank(1)):
        rule.check(where)
    here = Slice(0, 64, 600, lambda partials: partials, lambda counts: counts)
    with pytest.raises(ValueError, match=r"cannot be cut by coordinates; use AllGather or Local"):
        LowRank(1).check(Coordinates([(20, 30)], here))


# Wrong ones are caught


class Forgets(TopK):
    def decode(self, part, coordinates, *, generator, out):
        super().decode(part, coordinates, generator=generator, out=out)
        return torch.ones((), dtype=torch.bool)


class Writes(ScaledSign):
    def encode(self, vector, coordinates, *, generator) -> Entries:
        return super().encode(vector.mul_(1.0), coordinates, generator=generator)


class Global(RandomK):
    def encode(self, vector, coordinates, *, generator) -> Entries:
        return super().encode(vector, coordinates, generator=torch.default_generator)


class OwnSlice(TopK):
    def encode(self, vector, coordinates, *, generator) -> Entries:
        here = Coordinates([(len(vector),)])
        entries = super().encode(vector, here, generator=generator)
        return type(entries)(entries.index, entries.values, coordinates.start)


class Proud(ScaledSign):
    def alpha(self, coordinates):
        return 0.99


class Biased(TopK):
    def omega(self, coordinates):
        return 1 / super().alpha(coordinates) - 1


class Trusting(Cast):
    def decode(self, part, coordinates, *, generator, out):
        if part.numel() == 2 * len(out):
            out.copy_(part.view(torch.bfloat16))
        return torch.ones((), dtype=torch.bool)


class Neither(TopK):
    def alpha(self, coordinates):
        return None


class Larger(Identity):
    def size(self, coordinates, dtype):
        return super().size(coordinates, dtype) + 1


WRONG = [
    (Writes(), "compressor_inputs"),
    (Global(0.5), "compressor_purity"),
    (OwnSlice(0.3), "compressor_slices"),
    (Proud(), "compressor_contraction"),
    (Biased(0.3), "compressor_unbiased"),
    (Trusting(), "compressor_totality"),
    (Forgets(0.3), "compressor_totality"),
    (Neither(0.3), "compressor_constants"),
    (Larger(), "compressor_size"),
]


@pytest.mark.parametrize(
    ("rule", "law"), WRONG, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_wrong_compressors_are_caught(rule: Compressor, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(rule).__name__}\b.* breaks the law '{law}'"):
        next(known for known in COMPRESSOR_LAWS if known.name == law).hold(rule, cases=100, seed=0)


def test_every_law_has_a_wrong_compressor() -> None:
    assert {law for _, law in WRONG} == {law.name for law in COMPRESSOR_LAWS}
