"""Sorting networks, weighted order statistics, shares, block sums."""

import itertools
import math

import pytest
import torch

from lightning_byz.blocks import Blocks
from lightning_byz.kernels import (
    block_size,
    coordinate_median,
    mean_around_median,
    mixed_distances,
    nearest_shares,
    network,
    ordering,
    saturate,
    trimmed_mean,
    unusable,
    weighted_rows,
)
from lightning_byz.kernels.lines import ordered_with_rows
from lightning_byz.kernels.ordering import chunks, ordered
from lightning_byz.stack import Stack
from lightning_byz.testing.cutting import on_slices
from tests import reference
from tests.conftest import KERNELS

pytestmark = KERNELS

INF = float("inf")


def sorting(n: int) -> tuple[int, ...]:
    return tuple(range(1, n + 1))


def all_bits(n: int) -> torch.Tensor:
    """Every column of n zeros and ones: a network that orders these orders everything."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n))).T.contiguous()


@pytest.mark.parametrize("n", range(1, 13))
def test_networks_sort_all_zeros_and_ones(n: int) -> None:
    rows = all_bits(n)
    expected = rows.sort(dim=0).values
    for rank, values in enumerate(ordered(rows.unbind(), network(sorting(n)), [])):
        assert torch.equal(values, expected[rank])
    for rank in range(n):
        groups = tuple(int(place == rank) for place in range(n))
        assert torch.equal(ordered(rows.unbind(), network(groups), [])[rank], expected[rank])


@pytest.mark.parametrize("n", range(2, 11))
def test_ranks_of_a_group_are_its_values_in_any_order(n: int) -> None:
    rows = all_bits(n)
    expected = rows.sort(dim=0).values
    generator = torch.Generator().manual_seed(n)
    for _ in range(20):
        groups = tuple(torch.randint(0, 3, (n,), generator=generator).tolist())
        wires = ordered(rows.unbind(), network(groups), [])
        for group in set(groups) - {0}:
            ranks = [rank for rank in range(n) if groups[rank] == group]
            got = torch.stack([wires[rank] for rank in ranks]).sort(dim=0).values
            assert torch.equal(got, expected[ranks])


@pytest.mark.parametrize("n", [13, 17, 26, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_networks_sort_anything(n: int, dtype: torch.dtype) -> None:
    rows = torch.randn(n, 500, generator=torch.Generator().manual_seed(n)).to(dtype)
    rows[:, 0] = torch.finfo(dtype).max
    rows[n // 2, 1] = torch.finfo(dtype).min
    before, expected = rows.clone(), rows.sort(dim=0).values
    free: list[torch.Tensor] = []
    for _ in range(2):  # the second time with the buffers of the first
        assert torch.equal(torch.stack(ordered(rows.unbind(), network(sorting(n)), free)), expected)
    assert torch.equal(rows, before)
    middle = ordered(rows.unbind(), network(tuple(int(rank == n // 2) for rank in range(n))), free)[n // 2]
    assert torch.equal(middle, expected[n // 2])


def test_pruning_leaves_little() -> None:
    """What a median costs, in halves of comparators: fewer than 2.2 per value and doubling of n; and nothing where order does not matter."""
    full = network(sorting(17))
    median = network(tuple(int(rank == 8) for rank in range(17)))
    assert len(full) == 74
    assert sum(keep_low + keep_high for _, _, keep_low, keep_high in median) <= 106
    assert network((1,) * 17) == ()
    assert len(network((1, 0, 0, 0))) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_travel_with_their_values(dtype: torch.dtype) -> None:
    rows = torch.randint(0, 9, (14, 400), generator=torch.Generator().manual_seed(1)).to(dtype)
    wires = ordered_with_rows(rows.unbind(), network(sorting(14)))
    places = torch.stack([place for _, place in wires]).long()
    assert torch.equal(places.sort(dim=0).values, torch.arange(14)[:, None].expand(14, 400))
    assert torch.equal(rows.gather(0, places), torch.stack([value for value, _ in wires]))
    assert torch.equal(rows.gather(0, places), rows.sort(dim=0).values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10])
def test_medians_of_whole_vectors(n: int) -> None:
    """Longer than a chunk, and not a multiple of it; against a sort."""
    rows = torch.randn(n, 40_001, generator=torch.Generator().manual_seed(n))
    ranked = rows.sort(dim=0).values.double()
    expected = ((ranked[(n - 1) // 2] + ranked[n // 2]) / 2).float()
    assert torch.equal(coordinate_median(rows, [1.0] * n), expected)
    weights = torch.ones(n + 2).double()
    weights[[1, n]] = 0.0
    padded = torch.full((n + 2, 40_001), 1e30)
    padded[weights > 0] = rows
    assert torch.equal(coordinate_median(padded, weights.tolist()), expected)


def test_the_median_of_an_even_count_neither_overflows_nor_underflows() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        tiny = limits.smallest_normal * limits.eps
        rows = torch.tensor(
            [[limits.max, limits.max, tiny, -limits.max], [limits.max, -limits.max, tiny, 0.0]], dtype=torch.float64
        ).to(dtype)
        for weights in ([1, 1], [0.1, 0.1], [2, 2]):
            result = coordinate_median(rows, weights)
            assert result.tolist() == [limits.max, 0.0, tiny, -limits.max / 2]


def test_halves_of_sums_in_float32_are_those_in_float64() -> None:
    """Numbers of all sizes, down to the smallest and up to where sums overflow, which one chunk does and another does not."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-(2**31), 2**31 - 2**24, (4, 50_000), generator=generator, dtype=torch.int64).to(torch.int32)
    rows = whole.view(torch.float32).nan_to_num(nan=1.0, posinf=2.0, neginf=-3.0)
    rows[:, 20_000:] *= 1e-3
    rows[:, 40_000:] = rows[:, 40_000:] * 1e-36 * 1e-5
    near = rows[:1].view(torch.int32)  # and rows that differ in their last bits
    rows[1:3, ::3] = (
        (near + torch.tensor([[1], [2]], dtype=torch.int32))
        .view(torch.float32)
        .nan_to_num(nan=5.0, posinf=6.0, neginf=7.0)[:, ::3]
    )
    ranked = rows.sort(dim=0).values.double()
    expected = ((ranked[1] + ranked[2]) / 2).float() + 0.0
    assert torch.equal(bits(coordinate_median(rows, [1.0] * 4)), bits(expected))
    for low, high in ((0, 20_000), (20_000, 40_000), (40_000, 50_000)):
        own = coordinate_median(rows[:, low:high].contiguous(), [1.0] * 4)
        assert torch.equal(bits(own), bits(expected[low:high]))
        assert bool((own != 0).any())


def test_half_of_the_weight_is_half_whatever_the_scale() -> None:
    rows = torch.tensor([[1.0], [2.0], [5.0], [7.0]])
    for scale in (1.0, 0.1, 1 / 7, 1e-3, 1e9):
        weights = torch.tensor([1, 2, 1, 2], dtype=torch.float64) * scale  # 1 and 2 weigh as much as 5 and 7
        assert coordinate_median(rows, weights.tolist()).item() == 3.5
        assert (
            coordinate_median(rows, (weights + torch.tensor([0, 0, 0, scale * 1e-3]).double()).tolist()).item() == 5.0
        )


@pytest.mark.parametrize("seed", range(40))
def test_weighted_order_statistics_agree_with_their_definitions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 12, (1,), generator=generator))
    choices = torch.tensor([0.0, 0.1, 1 / 7, 1e-3, 1.0, 2.0, 0.5], dtype=torch.float64)
    weights = choices[torch.randint(len(choices), (n,), generator=generator)]
    if seed % 3 == 0:
        weights = torch.full((n,), float(choices[1 + seed % 6]), dtype=torch.float64)
    if not bool(weights.any()):
        weights[0] = 1.0
    rows = torch.randn(n, 7, generator=generator).double()
    rows[:, 0] = rows[:, 0].round()  # ties
    expected = reference.coordinate_median(rows.tolist(), weights.tolist(), 0)
    torch.testing.assert_close(
        coordinate_median(rows, weights.tolist()), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    f = float(weights.sum()) * float(torch.rand(1, generator=generator)) * 0.49
    expected = reference.trimmed_mean(rows.tolist(), weights.tolist(), float(reference.exact(f)))
    torch.testing.assert_close(
        trimmed_mean(rows, weights.tolist(), f), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4
    )


def test_trimming_by_a_fraction() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1e30]])
    ones = [1.0] * 5
    assert trimmed_mean(rows, ones, 1.0).item() == 2.0
    assert trimmed_mean(rows, ones, 2.0).item() == 2.0
    # half of the ranks 1 and 3 stay
    assert trimmed_mean(rows, ones, 1.5).item() == pytest.approx((0.5 * 1 + 2 + 0.5 * 3) / 2)
    assert trimmed_mean(rows * torch.tensor([1, 1, 1, 1, 1e-27])[:, None], ones, 0.25).item() == pytest.approx(
        (0.75 * (0 + 1e3) + 6) / 4.5
    )
    # what rounding leaves of the huge value is nothing
    assert trimmed_mean(rows, ones, 1 - 1e-12).item() == 2.0
    assert trimmed_mean(rows, [0.1] * 5, 0.1 - 1e-14).item() == 2.0
    assert trimmed_mean(rows, [1, 1, 1, 1, 1 + 1e-12], 1.0).item() == pytest.approx(2.0)


def test_chunks_cover_all_coordinates_once() -> None:
    ends = list(chunks(100, 40_001, 64))
    assert [low for low, _ in ends] == [100, *[high for _, high in ends[:-1]]]
    assert ends[-1][1] == 40_001
    assert list(chunks(3, 3, 64)) == []


def test_block_sizes() -> None:
    assert [block_size(total) for total in (0, 1, 16384, 16385, 10**6, 10**7, 10**9)] == [
        64,
        64,
        64,
        128,
        3968,
        16384,
        16384,
    ]


def test_saturation() -> None:
    values = torch.tensor([1e39, -1e39, 70000.0, 1e-60, 1.0], dtype=torch.float64)
    assert saturate(values, torch.float32).tolist() == [
        torch.finfo(torch.float32).max,
        torch.finfo(torch.float32).min,
        70000.0,
        0.0,
        1.0,
    ]
    assert saturate(values, torch.float16).tolist() == [65504.0, -65504.0, 65504.0, 0.0, 1.0]
    assert bool(saturate(values, torch.bfloat16).isfinite().all())


def test_nearest_shares() -> None:
    distances = torch.tensor([[0.0, 5.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    assert nearest_shares(distances, weights, 2.0).tolist() == [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    assert nearest_shares(distances, weights, 3.25).tolist() == [[1.0, 0.0, 2.0, 0.25], [1.0, 1.0, 1.25, 0.0]]
    assert nearest_shares(distances, weights, 2 + 1e-8).tolist() == [[1.0, 0.0, 1.00000001, 0.0], [1.0, 1.0, 0.0, 0.0]]
    tenth = torch.full((10,), 0.1, dtype=torch.float64)
    kept = nearest_shares(torch.arange(10.0).double()[None], tenth, float(tenth.sum()) - 0.3)
    assert bool((kept[0, :7] > 0.0999).all())
    assert kept[0, 7:].tolist() == [0.0, 0.0, 0.0]


def test_distances_of_mixtures() -> None:
    rows = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)).double()
    mixing = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)).double()
    mixing /= mixing.sum(1, keepdim=True)
    mixing[:, 0] = mixing[0, 0]  # what all share of a huge row cancels
    mixing[:, 1:] *= (1 - mixing[0, 0]) / mixing[:, 1:].sum(1, keepdim=True)
    mixing[4] = mixing[2]
    rows[0] = 1e12
    got = mixed_distances(rows @ rows.T, mixing)
    small = mixing[:, 1:] @ rows[1:]
    expected = (small[:, None] - small[None]).square().sum(2)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert float(got[2, 4]) == 0.0


def test_unusable_numbers_are_counted() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        rows = torch.ones(5, 70_000, dtype=dtype)
        rows[1, [3, 69_999]] = float("nan")
        rows[2, 65_536:] = INF
        rows[3] = torch.finfo(dtype).max if dtype != torch.float64 else 2.0**480  # sums overflow, the numbers do not
        rows[4, 5], rows[4, 6] = INF, -INF
        assert unusable(rows).tolist() == [0, 2, 4464, 0, 2]
    assert unusable(torch.tensor([[1e200, -(2.0**480) * 1.001, 2.0**480]], dtype=torch.float64)).tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sums_of_rows(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 1000, generator=torch.Generator().manual_seed(4)).to(dtype)
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(5)).double()
    blocks = Blocks.of(1000, 64)
    torch.testing.assert_close(weighted_rows(rows, matrix, blocks), (matrix @ rows.double()).to(dtype))
    torch.testing.assert_close(weighted_rows(rows, matrix[:1], blocks), (matrix[:1] @ rows.double()).to(dtype))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def many(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows with ties, both zeros, and the largest and smallest numbers."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    rows[:, 1::4] = rows[:, 1::4].round()
    rows[::2, 2::4] = 0.0
    rows[1::2, 2::4] = -0.0
    rows[: n // 3, 3] = torch.finfo(dtype).max if dtype != torch.float64 else 2.0**480
    rows[n // 3 : n // 2, 3] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return rows


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers with the signs of their zeros."""
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 33, 64])
def test_a_sort_gives_what_a_network_gives(n: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: order statistics are exact; where every rank is told apart, sums are taken in the order of the ranks."""
    rows, f = many(n, 200, dtype), 0.3 * n
    fractions = [1.0 + (row % 3) / 4 for row in range(n)]  # whose sums are exact in any order
    small = rows[:, [place for place in range(200) if place != 3]]  # the sum of the largest numbers and others rounds

    def results() -> list[torch.Tensor]:
        return [
            coordinate_median(rows, [0.1] * n),
            coordinate_median(rows, fractions),
            trimmed_mean(rows, fractions, f),
            coordinate_median(rows, [1 + row / 7 for row in range(n)]),
        ]

    def sums() -> list[torch.Tensor]:
        return [
            trimmed_mean(small, [1.0] * n, f),
            mean_around_median(small, [1.0] * n, f),
            mean_around_median(small, fractions, f),
        ]

    networks, sums_of_networks = results(), sums()
    monkeypatch.setattr(ordering, "_NETWORK", 0)
    for by_sort, by_network in zip(results(), networks, strict=True):
        assert torch.equal(bits(by_sort), bits(by_network))
    for by_sort, by_network in zip(sums(), sums_of_networks, strict=True):
        torch.testing.assert_close(
            by_sort,
            by_network,
            **({"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {}),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [257, 1000, 5000])
def test_many_rows(n: int, dtype: torch.dtype) -> None:
    """Against a sort of plain numbers."""
    rows, trimmed = many(n, 30, dtype), n // 5
    columns = [sorted(column) for column in rows.double().T.tolist()]
    middles = [(column[(n - 1) // 2] + column[n // 2]) / 2 for column in columns]
    assert torch.equal(coordinate_median(rows, [0.7] * n), torch.tensor(middles, dtype=torch.float64).to(dtype))
    means = [math.fsum(column[trimmed : n - trimmed]) / (n - 2 * trimmed) for column in columns]
    torch.testing.assert_close(
        trimmed_mean(rows, [1.0] * n, trimmed), saturate(torch.tensor(means, dtype=torch.float64), dtype)
    )
    nearest = [
        sorted(column, key=lambda value, middle=middle: (abs(value - middle), value))[: n - trimmed]
        for column, middle in zip(columns, middles, strict=True)
    ]
    means = [math.fsum(column) / (n - trimmed) for column in nearest]
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(
        mean_around_median(rows, [1.0] * n, trimmed), saturate(torch.tensor(means, dtype=torch.float64), dtype), **close
    )


@pytest.mark.parametrize("n", [257, 400])
def test_many_rows_of_unequal_weights(n: int) -> None:
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    rows[:, 0] = rows[:, 0].round()
    weights = [0.5 + (row * 7 % 11) / 8 for row in range(n)]
    f = 0.2 * sum(weights)
    for kernel, slow, first in (
        (lambda: coordinate_median(rows, weights), reference.coordinate_median, 0),
        (lambda: trimmed_mean(rows, weights, f), reference.trimmed_mean, 0),
        (
            lambda: mean_around_median(rows, weights, f),
            reference.mean_around_median,
            1,
        ),  # of ties it takes the first row, not the lower value
    ):
        expected = torch.tensor(slow(rows[:, first:].tolist(), weights, f), dtype=torch.float64)
        torch.testing.assert_close(kernel()[first:], expected, rtol=1e-6, atol=1e-6)


def test_chunks_and_slices_of_many_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = many(300, 300, torch.float32), [1 + row / 7 for row in range(300)]

    def results(part: Stack) -> torch.Tensor:
        own = part.vectors
        return torch.stack(
            [
                kernel(own, mass, *rest)
                for kernel, *rest in ((coordinate_median,), (trimmed_mean, 50.0), (mean_around_median, 50.0))
                for mass in ([1.0] * 300, weights)
            ]
        )

    whole = results(Stack(rows))
    assert torch.equal(torch.cat(on_slices(results, Stack(rows), [0, 64, 64, 192, 300]), dim=1), whole)
    monkeypatch.setattr(ordering, "_SORTED", 300 * 7)
    assert torch.equal(results(Stack(rows)), whole)


def test_networks_of_thousands_are_built() -> None:
    """Without deep recursion, and without trying all ways to split them."""
    rows = torch.randint(0, 1000, (2000, 3), generator=torch.Generator().manual_seed(0)).float()
    groups = tuple(int(rank == 700) for rank in range(2000))
    assert torch.equal(ordered(rows.unbind(), network(groups), [])[700], rows.sort(dim=0).values[700])


def test_of_two_values_the_lower_is_nearer_to_their_median() -> None:
    for rows in (torch.tensor([[1.0], [4.0]]), torch.tensor([[4.0], [1.0]])):
        assert mean_around_median(rows, [1.0, 1.0], 0.5).item() == 2.0


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_zero_is_never_negative(n: int) -> None:
    for weights in ([1.0] * n, [1.0 + row for row in range(n)]):
        for kernel, *rest in ((coordinate_median,), (trimmed_mean, 0.2), (mean_around_median, 0.2)):
            assert not bool(kernel(torch.full((n, 2), -0.0), weights, *rest).signbit().any())
