"""Who is tested: every exported rule, built with defaults, some combinations, and each aggregator behind each pre-aggregator."""

import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_byz import aggregators, attacks, preaggregators
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian, Krum, Mean
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.stack import Stack


def build(rule: type) -> Any:
    """The rule with its defaults; a rule inside it, where it has no default, is the coordinate-wise median."""
    required = [name for name, parameter in inspect.signature(rule).parameters.items() if parameter.default is parameter.empty]
    return rule(**dict.fromkeys(required, CoordinateMedian()))


def exported(family: ModuleType) -> list[Any]:
    classes = [getattr(family, name) for name in family.__all__]
    concrete = [rule for rule in classes if inspect.isclass(rule) and not inspect.isabstract(rule) and rule is not attacks.Attack]
    return [build(rule) for rule in concrete]


@dataclass(frozen=True)
class Behind(Aggregator):
    """An aggregator behind a pre-aggregator, as one rule."""

    first: PreAggregator
    then: Aggregator

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.first.exceptions | self.then.exceptions

    @property
    def unequal_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.first.unequal_weights and self.then.unequal_weights

    def tolerates(self, weight: float, f: float) -> bool:
        return self.first.tolerates(weight, f) and self.then.tolerates(weight, f)

    def kappa(self, n: float, f: float) -> float | None:
        return self.first.kappa(n, f, self.then.kappa(n, f))

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Tensor:
        return self.then(self.first(stack, generator=generator), generator=generator)

    def explain(self, stack: Stack, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        return self.then.explain(self.first(stack, generator=generator), generator=generator)


def label(rule: Any) -> str:
    return str(rule).replace("()", "").replace("base=", "")


PLAIN = [*exported(aggregators), CTMA(GeometricMedian()), CTMA(Krum()), Krum(neighbors="paper")]
MIXED = [Behind(first, then) for first in exported(preaggregators) for then in PLAIN if not isinstance(then, Mean)]
RULES: list[Aggregator] = [*PLAIN, *MIXED]
WEIGHTED = [rule for rule in RULES if rule.unequal_weights and "paper" not in str(rule)]
ATTACKS = exported(attacks)
