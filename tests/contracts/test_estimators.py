"""Every estimator keeps every law, and estimators that are wrong on purpose are caught by the law that they break."""

from typing import Any

import pytest

from lightning_byz import estimators
from lightning_byz.estimators import DM21, Estimator, Gradient, Storm, WorkerMomentum
from lightning_byz.testing import check_estimator
from lightning_byz.testing.laws import ESTIMATOR_LAWS, Law
from tests.contracts.subjects import exported, label, seed_of
from tests.contracts.wrong_estimators import RIGHT, WRONG, Shortened

SUBJECTS: list[Estimator] = [
    *exported(estimators),
    *RIGHT,
    *(Storm(beta) for beta in (1, 0.25, "theory", "released")),
    Storm(0.25, clip=0.5),
    WorkerMomentum(0.9, clip=2.0),
    *(DM21(eta, variance_reduced=reduced) for eta in (1, 0.25) for reduced in (False, True)),
    *(DM21(0.25, variance_reduced=reduced, clip=0.5) for reduced in (False, True)),
]


@pytest.mark.parametrize("law", ESTIMATOR_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("estimator", SUBJECTS, ids=label)
def test_estimators(estimator: Estimator, law: Law) -> None:
    law.hold(estimator, cases=60, seed=seed_of(estimator))


def test_the_librarys_own_are_among_them() -> None:
    assert [type(estimator) for estimator in SUBJECTS[:4]] == [DM21, Gradient, Storm, WorkerMomentum]


@pytest.mark.parametrize(
    ("estimator", "law"), WRONG, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
def test_wrong_estimators_are_caught(estimator: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(estimator).__name__}\b.* breaks the law '{law}'"):
        check_estimator(estimator, laws=[law])


def test_every_law_has_a_wrong_estimator() -> None:
    assert {law for _, law in WRONG} == {law.name for law in ESTIMATOR_LAWS}


def test_exceptions_are_data() -> None:
    check_estimator(Shortened(), cases=20)

    class Silent(Shortened):
        exceptions = frozenset()

    for law in ("estimator_coordinates", "estimator_scaling", "estimator_convergence"):
        with pytest.raises(AssertionError, match=rf"Silent.* breaks the law '{law}'"):
            check_estimator(Silent(), laws=[law])
