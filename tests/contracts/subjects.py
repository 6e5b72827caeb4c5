"""Who is tested: every exported rule, built with defaults, some combinations, and each aggregator behind each pre-aggregator."""

import inspect
from types import ModuleType
from typing import Any

from lightning_byz import aggregators, attacks, preaggregators
from lightning_byz.aggregators import (
    CTMA,
    Aggregator,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    DnC,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
)
from lightning_byz.attacks import ALIE, IPM, Attack, Sight
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import derive
from lightning_byz.testing.chain import Chain

FILLED = {Aggregator: CoordinateMedian(), Attack: IPM()}
CHOSEN = {attacks.LabelFlip: {"classes": 10}}


def build(rule: type) -> Any:
    """The rule with its defaults; a rule inside it, where it has no default, is the plainest of its family."""
    required = {
        name: parameter
        for name, parameter in inspect.signature(rule).parameters.items()
        if parameter.default is parameter.empty
    }
    return rule(**{name: FILLED[parameter.annotation] for name, parameter in required.items()}, **CHOSEN.get(rule, {}))


def exported(family: ModuleType) -> list[Any]:
    classes = [getattr(family, name) for name in family.__all__]
    return [
        build(rule)
        for rule in classes
        if inspect.isclass(rule) and not inspect.isabstract(rule) and rule not in (Attack, Sight)
    ]


def label(rule: object) -> str:
    """A short name, for test ids."""
    name = str(rule)
    for long in ("()", "base=", "first=", "then=", "neighbors=", ", smoothing=1e-06", "iterations=8"):
        name = name.replace(long, "")
    return name.replace("()", "")


def seed_of(rule: object) -> int:
    """Cases of its own for each rule, so that together they are many."""
    return derive(0, label(rule)) % 10**6


def workers_of(rule: object) -> int:
    """As many as the laws ask for, but few where every subset of them is looked at."""
    return 11 if "SMEA" in label(rule) else 65


PLAIN: list[Aggregator] = [
    *exported(aggregators),
    CTMA(GeometricMedian()),
    CTMA(Krum()),
    Krum(neighbors="paper"),
    MultiKrum(neighbors="paper"),
    MultiKrum(selected=2),
    Bulyan(neighbors="weight"),
    CenteredClipping(radius=0.1),
    DnC(iterations=2, coordinates=5),
]
PREAGGREGATORS: list[PreAggregator] = exported(preaggregators)
CHAINS: list[Aggregator] = [
    Chain(first, then) for first in PREAGGREGATORS for then in PLAIN if not isinstance(then, Mean)
]
CHAINS += [Chain(preaggregators.NNM(), Chain(preaggregators.Bucketing(), CoordinateMedian()))]
RULES: list[Aggregator] = [*PLAIN, *CHAINS]
ATTACKS: list[Attack] = [*exported(attacks), ALIE(z=1.5)]
