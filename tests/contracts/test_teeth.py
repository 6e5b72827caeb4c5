"""Tests of the tests: rules that are wrong on purpose are caught by the law that they break, and kernels that average turn rules red."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.aggregators import (
    CAF,
    CTMA,
    MDA,
    SMEA,
    Bulyan,
    CoordinateMedian,
    DnC,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MultiKrum,
    SignMajority,
    TrimmedMean,
)
from lightning_byz.attacks import IPM, Attack, SignFlip
from lightning_byz.codes import Code, Cyclic, Repetition, Solon
from lightning_byz.preaggregators import ARC, NNM, PreAggregator
from lightning_byz.stack import Stack
from lightning_byz.testing import check_aggregator, check_attack, check_code, check_preaggregator
from tests.conftest import KERNELS
from tests.contracts.wrong import WRONG, Correct

pytestmark = KERNELS


def test_a_correct_rule_passes() -> None:
    check_aggregator(Correct(), cases=60)


@pytest.mark.parametrize(
    ("rule", "law"), WRONG, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_wrong_rules_are_caught(rule: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(rule).__name__}\b.* breaks the law '{law}'"):
        check_aggregator(rule, cases=100, laws=[law])
    with pytest.raises(AssertionError, match=rf"^{type(rule).__name__}\b.* breaks the law "):
        check_aggregator(rule, cases=100)


class HandsOnWrongDistances(NNM):
    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        out = super().__call__(stack)
        out.squared_distances().mul_(2)
        return out


class HandsOnTooMuch(NNM):
    def hands_on(self, f: float) -> float:
        return 2 * f


class MixesInPlace(PreAggregator):
    condition = "no guarantee"

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        stack = self.admit(stack)
        stack.vectors.mul_(0.5)
        return Stack(stack.vectors, stack.weights, stack.f)


class Revives(PreAggregator):
    condition = "no guarantee"

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        stack = self.admit(stack)
        return Stack(stack.vectors.clone(), None, stack.f)


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (HandsOnWrongDistances(), "mixing"),
        (HandsOnTooMuch(), "stack_out"),
        (MixesInPlace(), "own_rows"),
        (Revives(), "stack_out"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_preaggregators_are_caught(rule: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(rule).__name__}\b.* breaks the law '{law}'"):
        check_preaggregator(rule, laws=[law])


class Noise(Attack):
    def replace(self, sight):
        return sight.own + torch.randn(()).to(sight.stack.vectors.dtype)


class TurnsInPlace(Attack):
    def replace(self, sight):
        return sight.stack.vectors.mul_(-1)[list(sight.attackers)]


class OneForAll(IPM):
    def replace(self, sight):
        return super().replace(sight)[:1]


class PeeksAtItsSlice(Attack):
    def replace(self, sight):
        return -sight.own / sight.stack.vectors.double().norm().clamp(min=1).to(sight.stack.vectors.dtype)


class CountsTheAbsent(Attack):
    def replace(self, sight):
        return -sight.stack.vectors.mean(0, keepdim=True).repeat(len(sight.attackers), 1)


class ShiftsLabelsInPlace(SignFlip):
    def poison(self, batch, *, generator):
        batch[1].add_(1)
        return batch


@pytest.mark.parametrize(
    ("attack", "law"),
    [
        (Noise(), "attack_randomness"),
        (TurnsInPlace(), "attack_rows"),
        (OneForAll(), "attack_rows"),
        (PeeksAtItsSlice(), "attack_slices"),
        (CountsTheAbsent(), "attack_weights"),
        (ShiftsLabelsInPlace(), "attack_batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_attacks_are_caught(attack: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(attack).__name__}\b.* breaks the law '{law}'"):
        check_attack(attack, laws=[law])


def mean_of(vectors: Tensor, weights: Any, *rest: Any, **more: Any) -> Tensor:
    weights = torch.as_tensor(weights, dtype=torch.float64)
    total = weights.sum().clamp(min=1e-300)
    return kernels.saturate((weights / total) @ vectors.double(), vectors.dtype)


def equal_shares(distances: Tensor, weights: Tensor, budget: float) -> Tensor:
    return (weights / weights.sum() * budget).expand_as(distances)


def all_alike(matrix: Tensor) -> Tensor:
    return torch.full_like(matrix, float(matrix.mean()))


REPLACEMENTS = {
    "coordinate_median": (mean_of, [CoordinateMedian(), GeometricMedian()]),
    "trimmed_mean": (mean_of, [TrimmedMean()]),
    "mean_around_median": (mean_of, [MeanAroundMedian(), Bulyan()]),
    "nearest_shares": (equal_shares, [CTMA(CoordinateMedian())]),
    "neighbour_scores": (lambda distances, weights, f, *, published: all_alike(distances).sum(1), [Krum()]),
    "mixed_distances": (lambda gram, mixing: all_alike(gram).abs(), [NNM()]),
    "cross_products": (
        lambda vectors, origin, blocks, **rest: torch.ones(len(blocks), *[len(vectors)] * 2).double(),
        [Krum(), GeometricMedian()],
    ),
    "sampled_products": (
        lambda vectors, masses, columns, blocks: torch.ones(len(blocks), *[len(vectors)] * 2).double(),
        [DnC()],
    ),
    "square_sums": (
        lambda vectors, origin, blocks: torch.ones(len(blocks), len(vectors)).double(),
        [CTMA(GeometricMedian())],
    ),
    "symmetric": (all_alike, [Krum()]),
    "weighted_rows": (
        lambda vectors, matrix, *rest, **about: vectors.double().mean(0).to(vectors.dtype).repeat(len(matrix), 1),
        [MultiKrum(), Mean()],
    ),
    "scaled_rows": (
        lambda vectors, factors, rows: vectors.double().mean(0).to(vectors.dtype).repeat(len(vectors), 1),
        [ARC()],
    ),
    "majority_signs": (lambda vectors, weights, *rest: mean_of(vectors, weights), [SignMajority()]),
    "principal_spread": (lambda gram, weights: (1.0, torch.ones_like(weights)), [CAF()]),
    "smallest_diameter": (lambda distances, count: list(range(count)), [MDA()]),
    "smallest_spread": (lambda gram, count: list(range(count)), [SMEA()]),
    "unusable": (lambda vectors: torch.zeros(len(vectors), dtype=torch.int64), [CoordinateMedian(), Krum()]),
    "mixed_pieces": (
        lambda rows, used, matrix, blocks, *, out, **pieces: out.fill_(1.0),
        [Solon(1, 2), Cyclic(1), Repetition(1)],
    ),
    "projected_pieces": (
        lambda rows, blocks, table, pieces: torch.ones(len(blocks), len(table), len(rows) * pieces).double(),
        [Solon(1, 2), Cyclic(1)],
    ),
    "differing": (lambda rows, pairs, blocks: torch.zeros(len(pairs), dtype=torch.int64), [Repetition(1)]),
}
UNUSED = {"SLIVER", "Aside", "Comparator", "answered", "block_size", "minority", "moments", "network", "saturate"}


def test_every_kernel_is_replaced() -> None:
    assert set(kernels.__all__) == set(REPLACEMENTS) | UNUSED


@pytest.mark.filterwarnings("ignore:Mean tolerates")
@pytest.mark.parametrize(
    ("name", "rule"), [(name, rule) for name, (_, rules) in REPLACEMENTS.items() for rule in rules], ids=str
)
def test_a_kernel_that_averages_turns_rules_red(name: str, rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, replacement = getattr(kernels, name), REPLACEMENTS[name][0]
    for module in [module for path, module in sys.modules.items() if path.startswith("lightning_byz.")]:
        if getattr(module, name, None) is original:
            monkeypatch.setattr(module, name, replacement)
    check = check_preaggregator if isinstance(rule, PreAggregator) else check_aggregator
    with pytest.raises(AssertionError, match="breaks the law"):
        check_code(rule, cases=60) if isinstance(rule, Code) else check(rule, cases=60, workers=11)
