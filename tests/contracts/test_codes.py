"""Every code keeps every law, and what is wrong breaks one."""

import pytest
import torch

from lightning_byz.codes import Code, Cyclic, Repetition, Solon
from lightning_byz.testing import check_code
from lightning_byz.testing.laws import CODE_LAWS, Law

CODES = [Solon(1, 1), Solon(1, 2), Solon(2, 3), Solon(3, 6), Cyclic(1), Cyclic(3), Repetition(1), Repetition(3)]


@pytest.mark.parametrize("law", CODE_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("code", CODES, ids=str)
def test_codes(code: Code, law: Law) -> None:
    law.hold(code, cases=30, seed=7)


class Short(Repetition):
    def groups(self, workers: int) -> list[range]:
        return [range(first, min(first + 2, workers)) for first in range(0, workers, 2)]


class Writing(Solon):
    def encode(self, worker, gradients, coordinates, *, workers, out=None):
        gradients[0].mul_(2)
        return super().encode(worker, gradients, coordinates, workers=workers, out=out)


class Whole(Solon):
    def project(self, rows, coordinates, slice=None, *, generator):
        return (
            super().project(rows, coordinates, None, generator=generator)
            if slice is None
            else self._own(rows, coordinates, slice)
        )

    def _own(self, rows, coordinates, slice):
        return torch.zeros(len(rows), 6, dtype=torch.float64)


class Accusing(Solon):
    def locate(self, projections, *, dtype=torch.float32):
        return super().locate(projections, dtype=dtype) or [0]


@pytest.mark.parametrize(
    ("code", "law"),
    [
        (Short(1), "code_parts"),
        (Writing(1, 2), "code_purity"),
        (Whole(1, 2), "code_slices"),
        (Accusing(1, 2), "code_recovery"),
    ],
    ids=str,
)
def test_wrong_ones_break_them(code: Code, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_code(code, laws=[law])
