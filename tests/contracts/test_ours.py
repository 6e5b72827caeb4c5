"""What holds for the library's own rules beside the laws: values, words, and known results."""

import dataclasses

import pytest
import torch

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, Mean, TrimmedMean
from lightning_byz.errors import ToleranceError
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case
from lightning_byz.testing.chain import Chain
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.running import draw
from tests.conftest import KERNELS
from tests.contracts.subjects import ATTACKS, PLAIN, PREAGGREGATORS, RULES, label

pytestmark = [KERNELS, pytest.mark.filterwarnings("ignore:Mean tolerates")]


@pytest.mark.parametrize("rule", [*RULES, *ATTACKS], ids=label)
def test_rules_are_frozen_values(rule: object) -> None:
    assert dataclasses.is_dataclass(rule)
    assert hash(rule) == hash(dataclasses.replace(rule))  # pyright: ignore[reportArgumentType]
    for name in [field.name for field in dataclasses.fields(rule)][:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, name, None)


@pytest.mark.parametrize("rule", [*PLAIN, *PREAGGREGATORS], ids=label)
def test_refusals_say_what_is_needed(rule: Aggregator) -> None:
    for n, f in ((1, 0.5), (4, 2), (9, 4.5), (13, 13)):
        if not rule.tolerates([1.0] * n, f):
            with pytest.raises(
                ToleranceError, match=rf"f = {f:g} of the total weight W = {n}; it needs .*: lower f or add workers"
            ):
                rule(Stack(torch.ones(n, 2), f=f), **draw(rule))
    with pytest.raises(ToleranceError, match="at least one row of positive weight"):
        rule(Stack(torch.ones(3, 2), [0, 0, 0]), **draw(rule))


@pytest.mark.parametrize("rule", [TrimmedMean(), CTMA(CoordinateMedian()), Chain(NNM(), CoordinateMedian())], ids=label)
def test_nothing_to_tolerate_is_the_mean(rule: Aggregator) -> None:
    rows = torch.randn(9, 7, generator=torch.Generator().manual_seed(9))
    rows[0] *= 1e4
    torch.testing.assert_close(rule(Stack(rows)), rows.double().mean(0).float(), rtol=2e-7, atol=0)


def test_the_mean_breaks() -> None:
    """One huge row moves the mean, so the bounds that the others keep are not empty."""
    honest = Case("mean", 0).normal(8, 3)
    rows = torch.cat([honest, torch.full((1, 3), 1e9, dtype=torch.float64)])
    assert float((Mean()(Stack(rows, f=1)) - honest.mean(0)).norm()) > 1e8


def test_a_slice_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="not a run of whole blocks"):
        on_slices(lambda part: part.centre(), Stack(torch.randn(5, 1000)), [0, 100, 1000])


def test_slices_that_wait_for_each_other_are_given_up() -> None:
    def uneven(part: Stack) -> torch.Tensor:
        return part.gram() if part.slice is not None and part.slice.start == 0 else part.vectors

    with pytest.raises(AssertionError, match="waited for each other"):
        on_slices(uneven, Stack(torch.randn(5, 130)), [0, 64, 130])


def test_cuts_cover_everything() -> None:
    for seed in range(20):
        ends = cuts_of(1000, 5, torch.Generator().manual_seed(seed))
        assert ends == sorted(ends)
        assert (ends[0], ends[-1], len(ends)) == (0, 1000, 6)
