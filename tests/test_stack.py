"""The stack: validation, distances that keep their digits, rows left out, slices."""

import pytest
import torch

import lightning_byz.kernels as kernels
from lightning_byz.aggregators import CTMA, CoordinateMedian, Krum, Mean
from lightning_byz.errors import TooManyFaults
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Slice, Stack
from tests.conftest import KERNELS

pytestmark = KERNELS


def seeded(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct_distances(rows: torch.Tensor) -> torch.Tensor:
    wide = rows.double()
    return torch.stack([(wide - row).square().sum(1) for row in wide])


def test_weights_become_float64() -> None:
    for weights in (None, [1, 1, 1], torch.ones(3), torch.ones(3, dtype=torch.int32)):
        stack = Stack(torch.ones(3, 2), weights, f=1)
        assert stack.weights.dtype == torch.float64
        assert stack.weights.tolist() == [1.0, 1.0, 1.0]
        assert stack.f == 1.0
        assert stack.total_weight == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectors": torch.ones(3)}, r"one row per worker \(n, d\), not \(3,\) of torch.float32"),
        ({"vectors": torch.ones(3, 2, dtype=torch.int64)}, "floating point tensor.*torch.int64"),
        ({"weights": [1, 1]}, r"weights must be 3 finite numbers >= 0.*\[1.0, 1.0\]"),
        ({"weights": [1, 1, -1]}, "weights must be 3 finite numbers >= 0"),
        ({"weights": [1, 1, float("nan")]}, "weights must be 3 finite numbers >= 0"),
        ({"weights": [1, 1, float("inf")]}, "weights must be 3 finite numbers >= 0"),
        ({"f": -1}, "f must be a finite weight >= 0, not -1"),
        ({"f": float("nan")}, "f must be a finite weight >= 0, not nan"),
        ({"f": float("inf")}, "f must be a finite weight >= 0, not inf"),
        ({"reference": torch.ones(3)}, r"reference must have 2 coordinates, not shape \(3,\)"),
        (
            {"slice": Slice(0, 64, 100, torch.Tensor.clone, torch.Tensor.clone)},
            "slice 0..64 does not have 2 coordinates",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stack(**{"vectors": torch.ones(3, 2), **arguments})


@pytest.mark.parametrize("ends", [(1, 64), (64, 100), (64, 0), (0, 1001), (-64, 64)])
def test_slices_are_whole_blocks(ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a run of whole blocks"):
        Slice(*ends, 1000, torch.Tensor.clone, torch.Tensor.clone)
    for start, stop in [(0, 64), (960, 1000), (1000, 1000), (0, 1000)]:
        Slice(start, stop, 1000, torch.Tensor.clone, torch.Tensor.clone)


def test_blocks_cover_the_slice() -> None:
    stack = Stack(torch.ones(2, 1000))
    assert stack.total == 1000
    assert stack.blocks().bounds[0] == (0, 64)
    assert stack.blocks().bounds[-1] == (960, 1000)
    assert len(Stack(torch.ones(2, 0)).blocks()) == 0


@pytest.mark.parametrize("n", [3, 10, 26, 40])
@pytest.mark.parametrize("common", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_keep_their_digits(n: int, common: float, dtype: torch.dtype) -> None:
    """A common part of up to a million times the noise costs nothing, at any n, on rows of any size."""
    noise = 1e-2 if common else 1.0
    rows = (common * noise * seeded(1, 3000, 1) + noise * seeded(n, 3000)).to(dtype)
    expected = direct_distances(rows)
    got = Stack(rows).squared_distances()
    assert torch.equal(got, got.T)
    assert not bool(got.diagonal().any())
    torch.testing.assert_close(got, expected, rtol=1e-6 if dtype == torch.float64 else 1e-9, atol=0)


def test_distances_beside_huge_rows() -> None:
    rows = seeded(9, 2000).float()
    rows[0], rows[1] = 3e38, 1e10
    rows[2] *= 1e-30
    got = Stack(rows).squared_distances()
    expected = direct_distances(rows)
    torch.testing.assert_close(got[2:, 2:], expected[2:, 2:], rtol=1e-12, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [26, 40])
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_krum_is_right_where_float32_distances_are_wrong(n: int, ratio: float) -> None:
    """A common part a thousand to a million times the noise, a fifth of the rows shifted: the row that exact distances choose."""
    f = n // 5
    for seed in range(2):
        rows = (ratio * seeded(1, 10_000, 100) + seeded(n, 10_000, seed)).float()
        rows[:f] += 0.5
        chosen = Krum()(Stack(rows, f=f))
        scores = direct_distances(rows).sort(dim=1).values[:, : n - f].sum(1)
        assert torch.equal(chosen, rows[scores.argmin()])


def test_distances_to_a_point_and_norms() -> None:
    rows = seeded(5, 1111).float() + 100
    point = seeded(1, 1111, 3)[0].float()
    torch.testing.assert_close(
        Stack(rows).squared_distances_to(point), (rows.double() - point).square().sum(1), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(Stack(rows).squared_norms(), rows.double().square().sum(1), rtol=1e-12, atol=0)


def test_bfloat16_rows_are_measured_in_float64() -> None:
    rows = (seeded(6, 999) + 300).bfloat16()
    torch.testing.assert_close(Stack(rows).squared_distances(), direct_distances(rows), rtol=1e-12, atol=0)


def test_mean_of_two_is_correctly_rounded() -> None:
    rows = seeded(2, 100_000).float()
    rows[:, :2] = torch.finfo(torch.float32).max
    assert torch.equal(Mean()(Stack(rows)), rows[0] / 2 + rows[1] / 2)
    wide = seeded(2, 1000)
    assert torch.equal(Mean()(Stack(wide)), (wide[0] + wide[1]) / 2)


def test_the_median_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One median serves the base, the centre and the distances."""
    calls: list[int] = []
    median = kernels.coordinate_median
    monkeypatch.setattr(
        kernels, "coordinate_median", lambda *given, **more: (calls.append(1), median(*given, **more))[1]
    )
    stack = Stack(seeded(7, 50), f=2)
    CTMA(CoordinateMedian())(stack)
    Krum()(stack)
    assert calls == [1]


def test_broken_rows_are_left_out_and_counted_against_f() -> None:
    rows = seeded(6, 100)
    rows[1, 7], rows[4, 99] = float("nan"), float("inf")
    stack = Stack(rows, [1, 0.5, 1, 1, 0.25, 1], f=1)
    clean = stack.sanitised()
    assert stack.nonfinite().tolist() == [0, 1, 0, 0, 1, 0]
    assert clean.weights.tolist() == [1, 0, 1, 1, 0, 1]
    assert clean.f == pytest.approx(0.25)
    assert not bool(clean.vectors[[1, 4]].any())
    assert torch.equal(clean.vectors[[0, 2, 3, 5]], rows[[0, 2, 3, 5]])
    assert clean.sanitised() is clean
    assert bool(rows[1, 7].isnan())


def test_clean_rows_are_not_copied() -> None:
    stack = Stack(seeded(4, 10), f=1)
    assert stack.sanitised() is stack
    assert stack.excluding(torch.zeros(4, dtype=torch.bool), faulty=True) is stack
    assert stack.vectors.data_ptr() == Stack(stack.vectors).vectors.data_ptr()


def test_more_broken_weight_than_f_is_refused() -> None:
    rows = seeded(5, 10)
    rows[2] = rows[3] = float("nan")
    with pytest.raises(
        TooManyFaults,
        match=r"rows \[2, 3\] hold numbers that are not finite.* weigh 0.2 together.* f = 0.1 of the weight 0.5",
    ):
        Stack(rows, [0.1] * 5, f=0.1).sanitised()
    third = 0.1 + 0.1 + 0.1  # more than 0.3 by rounding
    rows[4] = float("nan")
    assert Stack(rows, [0.1] * 5, f=0.3).sanitised().f == 0.0
    assert third > 0.3


def test_rows_without_weight_may_be_broken() -> None:
    rows = seeded(3, 10)
    rows[1] = float("nan")
    clean = Stack(rows, [1, 0, 1], f=0).sanitised()
    assert bool(clean.vectors.isfinite().all())


def test_absent_rows_do_not_count_against_f() -> None:
    stack = Stack(seeded(5, 10), f=2)
    rows = torch.tensor([True, False, False, False, False])
    assert stack.excluding(rows, faulty=False).f == 2.0
    assert stack.excluding(rows, faulty=True).f == 1.0
    assert stack.excluding(~rows, faulty=True).f == 0.0
    assert stack.excluding(rows, faulty=False).weights.tolist() == [0, 1, 1, 1, 1]


def test_what_was_counted_elsewhere_is_believed() -> None:
    rows = seeded(4, 10)
    stack = Stack(rows, f=1).inspected(torch.tensor([0, 3, 0, 0]))
    assert stack.nonfinite().tolist() == [0, 3, 0, 0]
    assert stack.sanitised().weights.tolist() == [1, 0, 1, 1]


def test_what_is_known_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are looked through once, and weights read by the host once, whatever is made of the stack."""
    rows, looked = seeded(5, 10), []
    rows[3] = float("nan")
    unusable = kernels.unusable
    monkeypatch.setattr(kernels, "unusable", lambda vectors: (looked.append(1), unusable(vectors))[1])
    stack = Stack(rows, torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0]), f=1)
    assert stack.broken() == (3,)
    there = stack.excluding(torch.tensor([True, False, False, False, False]), faulty=False)
    assert (there.masses, there.total_weight, there.broken()) == ((0.0, 2.0, 1.0, 0.5, 1.0), 4.5, (3,))
    clean = there.sanitised()
    assert (clean.masses, clean.f, clean.broken()) == ((0.0, 2.0, 1.0, 0.0, 1.0), 0.5, ())
    mixed = NNM()(clean)
    assert (mixed.masses, mixed.broken(), mixed.nonfinite().tolist()) == (clean.masses, (), [0] * 5)
    assert clean.mix(3 * torch.eye(5).double()).broken() == ()
    assert looked == [1, 1]
    for told in (stack, there, clean, mixed):
        assert told.weights.tolist() == list(told.masses)
        assert told.nonfinite().tolist() == unusable(told.vectors).tolist()


def test_a_slice_of_another_block_width() -> None:
    """Its blocks, sums and draws are those of the whole in that width."""
    rows = seeded(4, 1000)
    whole = Stack(rows, slice=Slice(0, 1000, 1000, torch.Tensor.clone, torch.Tensor.clone, width=256))
    assert whole.blocks().bounds == ((0, 256), (256, 512), (512, 768), (768, 1000))
    parts = []

    def gather(partials: torch.Tensor) -> torch.Tensor:
        parts.append(partials)
        return torch.cat(parts)

    for start, stop in ((0, 512), (512, 1000)):
        part = Stack(rows[:, start:stop], slice=Slice(start, stop, 1000, gather, torch.Tensor.clone, width=256))
        norms = part.squared_norms()
    assert torch.equal(norms, whole.squared_norms())
    assert part.blocks().numbers() == [2, 3]
    with pytest.raises(ValueError, match="multiples of 256"):
        Slice(0, 128, 1000, torch.Tensor.clone, torch.Tensor.clone, width=256)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Slice(0, 128, 1000, torch.Tensor.clone, torch.Tensor.clone, width=-1)


def test_combinations_saturate() -> None:
    top = torch.finfo(torch.float32).max
    rows = torch.full((2, 3), top)
    assert Stack(rows).combination(torch.tensor([1.0, 1.0], dtype=torch.float64)).tolist() == [top] * 3
    assert Stack(rows).combination(torch.tensor([-5.0, 1.0], dtype=torch.float64)).tolist() == [-top] * 3
    assert Stack(rows).combination(torch.tensor([2.0, -1.0], dtype=torch.float64)).tolist() == [top] * 3


def test_moments() -> None:
    rows, shares = seeded(6, 500) + 1e6, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, 0.0], dtype=torch.float64)
    mean, variance = Stack(rows).moments(shares)
    torch.testing.assert_close(mean, shares @ rows, rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, shares @ (rows - shares @ rows).square(), rtol=1e-6, atol=1e-9)


def test_mixtures_hand_their_distances_on() -> None:
    rows = 1e4 + seeded(9, 700)
    rows[0] = 1e9
    mixed = NNM()(Stack(rows, f=2))
    torch.testing.assert_close(mixed.squared_distances(), direct_distances(mixed.vectors), rtol=1e-4, atol=1e-6)
    assert mixed.mixing is not None
    torch.testing.assert_close(mixed.mixing @ rows, mixed.vectors, rtol=1e-9, atol=0)
    again = NNM()(mixed)
    assert again.mixing is not None
    torch.testing.assert_close(again.mixing @ rows, again.vectors, rtol=1e-9, atol=0)


def test_mixtures_that_do_not_average_measure_their_distances() -> None:
    rows = seeded(4, 300)
    mixed = Stack(rows).mix(torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0])).double())
    torch.testing.assert_close(mixed.squared_distances(), direct_distances(mixed.vectors))


def test_left_out_rows_leave_mixtures_too() -> None:
    mixed = NNM()(Stack(seeded(5, 20), f=1)).excluding(torch.tensor([True, False, False, False, False]), faulty=True)
    assert mixed.mixing is not None
    assert not bool(mixed.mixing[0].any())
