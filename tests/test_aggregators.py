"""Each rule against its definition, written independently; published values; parameters."""

import warnings
from typing import ClassVar

import pytest
import torch

from lightning_byz.aggregators import CTMA, CoordinateMedian, GeometricMedian, Krum, Mean, TrimmedMean
from lightning_byz.errors import ToleranceError
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack
from tests import reference
from tests.conftest import KERNELS

PAIRS = {
    "Mean": (Mean(), reference.mean),
    "CoordinateMedian": (CoordinateMedian(), reference.coordinate_median),
    "TrimmedMean": (TrimmedMean(), reference.trimmed_mean),
    "GeometricMedian": (GeometricMedian(), reference.geometric_median),
    "Krum": (Krum(), reference.krum),
    "CTMA of the median": (CTMA(CoordinateMedian()), reference.ctma(reference.coordinate_median)),
    "CTMA of Krum": (CTMA(Krum()), reference.ctma(reference.krum)),
}
WEIGHTS = [None, [0.1] * 9, [1, 2, 1, 3, 1, 2, 0, 1, 1], [0.1, 1 / 7, 1e-3, 1, 0.5, 0.25, 0.1, 0, 1 / 7]]
PARTS = [0.0, 0.1, 0.25, 1 / 3, 0.45]

pytestmark = [KERNELS, pytest.mark.filterwarnings("ignore:Mean tolerates")]


def example(seed: int, n: int = 9) -> torch.Tensor:
    rows = torch.randn(n, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:2] += 30
    return rows


def fractional(total: float, part: float) -> float:
    return float(reference.exact(total * part))


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_rules_agree_with_their_definitions(name: str, weights: list[float] | None) -> None:
    rule, slow = PAIRS[name]
    for seed, part in enumerate(PARTS):
        rows, mass = example(seed), weights or [1.0] * 9
        f = fractional(sum(mass), part)
        expected = torch.tensor(slow(rows.tolist(), mass, f), dtype=torch.float64)
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 1e-4)):
            torch.testing.assert_close(
                rule(Stack(rows.to(dtype), weights, f)).double(), expected, rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("name", PAIRS)
def test_whole_numbers_of_workers_agree_closely(name: str) -> None:
    rule, slow = PAIRS[name]
    for n in (1, 2, 3, 6, 9, 17):
        for f in range((n + 1) // 2):
            rows = example(n + f, n)
            expected = torch.tensor(slow(rows.tolist(), [1.0] * n, f), dtype=torch.float64)
            torch.testing.assert_close(rule(Stack(rows, f=f)), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_mixing_agrees_with_its_definition(weights: list[float] | None) -> None:
    for seed, part in enumerate(PARTS):
        rows, mass = example(seed), torch.tensor(weights or [1.0] * 9, dtype=torch.float64)
        f = fractional(float(mass.sum()), part)
        expected = torch.tensor(reference.nnm(rows.tolist(), mass.tolist(), f), dtype=torch.float64)
        got = NNM()(Stack(rows, weights, f)).vectors
        torch.testing.assert_close(got[mass > 0], expected[mass > 0], rtol=1e-4, atol=1e-4)
        assert not bool(got[mass == 0].any())


def test_krum_of_the_paper() -> None:
    for seed in range(30):
        for n, f in ((5, 1), (8, 2), (11, 4), (6, 0)):
            rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            expected = torch.tensor(reference.krum_paper(rows.tolist(), [1.0] * n, f), dtype=torch.float64)
            assert torch.equal(Krum(neighbors="paper")(Stack(rows, f=f)), expected)


def test_the_two_krums_differ() -> None:
    seeds = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(40)]
    different = [not torch.equal(Krum()(Stack(rows, f=2)), Krum(neighbors="paper")(Stack(rows, f=2))) for rows in seeds]
    assert 2 < sum(different) < 30


def test_published_values() -> None:
    """Three equally spaced rows, f = 1; the ties go to the lower worker."""
    stack = Stack(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), f=1)
    for rule in (Mean(), CoordinateMedian(), TrimmedMean()):
        assert rule(stack).tolist() == [4, 5, 6]
    assert Krum()(stack).tolist() == [1, 2, 3]
    assert NNM()(stack).vectors.tolist() == [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]]
    assert CTMA(CoordinateMedian())(stack).tolist() == [2.5, 3.5, 4.5]


def test_ctma_keeps_exactly_its_weight_on_ties() -> None:
    rows = torch.tensor([[-1.0], [1.0], [-1.0], [1.0], [0.0]])
    vector, shares = CTMA(CoordinateMedian())(Stack(rows, f=2)), CTMA(CoordinateMedian()).explain(Stack(rows, f=2))[1]
    assert shares is not None
    torch.testing.assert_close(shares, torch.tensor([1, 1, 0, 0, 1], dtype=torch.float64) / 3)
    assert vector.item() == 0.0


def test_eight_steps_come_close_to_the_geometric_median() -> None:
    """The objective after eight steps is within one in a thousand of what four hundred reach."""
    for seed in range(20):
        rows = example(seed)
        few, many = (GeometricMedian(iterations=count)(Stack(rows, f=2)).tolist() for count in (8, 400))
        objective = reference.total_distance(rows.tolist(), [1.0] * 9, many)
        assert reference.total_distance(rows.tolist(), [1.0] * 9, few) <= objective * (1 + 1e-3)
        # nothing nearby is better
        for k in range(11):
            for step in (-1e-3, 1e-3):
                moved = [value + step * (place == k) for place, value in enumerate(many)]
                assert reference.total_distance(rows.tolist(), [1.0] * 9, moved) >= objective * (1 - 1e-9)


def test_the_geometric_median_of_a_majority_is_the_majority() -> None:
    rows = torch.tensor([[1.0, 2.0]] * 3 + [[5.0, 9.0], [-4.0, 1e30]])
    result, shares = GeometricMedian().explain(Stack(rows, f=2))
    assert result.tolist() == [1.0, 2.0]
    assert shares is not None
    torch.testing.assert_close(shares, torch.tensor([1, 1, 1, 0, 0], dtype=torch.float64) / 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeometricMedian(iterations=0), "iterations must be a whole number of at least 1, not 0"),
        (lambda: GeometricMedian(smoothing=0.0), "smoothing must lie strictly between 0 and 1, not 0"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_krum_of_the_paper_takes_equal_weights_only() -> None:
    rows = torch.randn(7, 2)
    with pytest.raises(ToleranceError, match="Krum takes equal weights only"):
        Krum(neighbors="paper")(Stack(rows, [2.0] * 6 + [1.0], f=1))
    assert torch.equal(
        Krum(neighbors="paper")(Stack(rows, [0.1] * 7, f=0.1)), Krum(neighbors="paper")(Stack(rows, f=1))
    )
    assert Krum(neighbors="paper")(Stack(rows, [1, 1, 1, 0, 1, 1, 1], f=1)).shape == (2,)
    assert Krum(neighbors="paper").tolerates([1.0] * 7, 2.4)
    assert not Krum(neighbors="paper").tolerates([1.0] * 7, 2.5)


class Told(Mean):
    """Notes what it is asked."""

    asked: ClassVar[list[tuple[list[float], float]]] = []

    def tolerates(self, weights, f):
        self.asked.append((list(weights), f))
        return True


class ToldUnits(Told):
    unequal_weights = False


def test_rules_are_told_the_weights_of_the_rows_present() -> None:
    rows = torch.randn(4, 2)
    rows[3] = float("nan")
    Told.asked.clear()
    Told()(Stack(rows, [0.5, 0.0, 2.0, 0.25], f=1))
    assert Told.asked == [([0.5, 2.0, 0.25], 1.0), ([0.5, 2.0], 0.75)]
    Told.asked.clear()
    ToldUnits()(Stack(rows, [0.5, 0.0, 0.5, 0.5], f=1))
    assert Told.asked == [([1.0, 1.0, 1.0], 2.0), ([1.0, 1.0], 1.0)]
    assert all(type(weight) is float for weights, _ in Told.asked for weight in weights)


def test_a_rule_that_takes_the_sum_is_told_of_the_weights() -> None:
    class TakesTheSum(Mean):
        def tolerates(self, weights, f):
            return 2 * f < weights

    with pytest.raises(
        TypeError, match=r"TakesTheSum.tolerates\(weights, f\) must answer for the weights of the rows, 3 numbers"
    ):
        TakesTheSum()(Stack(torch.ones(3, 2), f=1))


def test_ctma_needs_what_its_base_needs() -> None:
    with pytest.raises(ToleranceError, match="CTMA cannot tolerate f = 3 of the total weight W = 7"):
        CTMA(Krum(neighbors="paper"))(Stack(torch.randn(7, 2), f=3))


def test_the_mean_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_byz.errors._WARNED", set())
    with pytest.warns(UserWarning, match="Mean tolerates no Byzantine worker"):
        Mean()(Stack(torch.ones(3, 2), f=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mean()(Stack(torch.ones(3, 2), f=1))
