"""Every rule keeps every law that concerns it, on either path of the kernels."""

from typing import Any

import pytest

from lightning_byz.aggregators import Aggregator
from lightning_byz.testing.laws import AGGREGATOR_LAWS, ATTACK_LAWS, PREAGGREGATOR_LAWS, Law
from tests.conftest import KERNELS
from tests.contracts.subjects import ATTACKS, CHAINS, PLAIN, PREAGGREGATORS, label, seed_of, workers_of

pytestmark = [KERNELS, pytest.mark.filterwarnings("ignore:Mean tolerates")]


def pairs(rules: list[Any], laws: tuple[Law, ...]) -> list[Any]:
    return [
        pytest.param(rule, law, id=f"{label(rule)}-{law.name}") for rule in rules for law in laws if law.applies(rule)
    ]


@pytest.mark.parametrize(("rule", "law"), pairs(PLAIN, AGGREGATOR_LAWS))
def test_aggregators(rule: Aggregator, law: Law) -> None:
    law.hold(rule, cases=20, seed=seed_of(rule), workers=workers_of(rule))


@pytest.mark.parametrize(("rule", "law"), pairs(CHAINS, AGGREGATOR_LAWS))
def test_chains(rule: Aggregator, law: Law) -> None:
    law.hold(rule, cases=6, seed=seed_of(rule), workers=workers_of(rule))


@pytest.mark.parametrize(("rule", "law"), pairs(PREAGGREGATORS, PREAGGREGATOR_LAWS))
def test_preaggregators(rule: Any, law: Law) -> None:
    law.hold(rule, cases=24, seed=seed_of(rule), workers=workers_of(rule))


@pytest.mark.parametrize(("attack", "law"), pairs(ATTACKS, ATTACK_LAWS))
def test_attacks(attack: Any, law: Law) -> None:
    law.hold(attack, cases=16, seed=seed_of(attack))
