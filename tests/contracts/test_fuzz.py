"""A small part of ``python -m tests.fuzz``, and that it finds what is wrong."""

import pytest
import torch

from lightning_byz.testing.rows import DTYPES
from tests.conftest import KERNELS
from tests.contracts.subjects import RULES, label
from tests.contracts.wrong import AdmitsAnything, BoundTooSmall, MeanForMedian
from tests.fuzz import Record, fuzz, main, problem_of

pytestmark = [KERNELS, pytest.mark.filterwarnings("ignore:Mean tolerates")]


def records_of(rules: list, dtype: torch.dtype, cases: int) -> list[Record]:
    *_, records = fuzz(rules, dtype, cases, seed=0)
    return records


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_found(dtype: torch.dtype) -> None:
    records = records_of(RULES, dtype, 6)
    assert all(record.cases >= 6 for record in records)
    assert not [f"{label(record.rule)}: {record.first}" for record in records if record.bad]


def test_what_is_wrong_is_found() -> None:
    mean, anything, bound = records_of([MeanForMedian(), AdmitsAnything(), BoundTooSmall()], torch.float32, 150)
    assert mean.violations > 0
    assert mean.non_finite == 0
    assert mean.worst > 1e6
    assert anything.non_finite > 0
    assert bound.violations > 0
    assert 1 < bound.worst < 10
    assert bound.first.startswith("seed ")


def test_cases_can_be_repeated() -> None:
    first, second = (problem_of(17, torch.float32)[1] for _ in range(2))
    assert torch.equal(first.rows.nan_to_num(), second.rows.nan_to_num())
    assert first.f == second.f


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cases", "3", "--rules", "TrimmedMean", "--dtypes", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "beyond kappa" in printed
    assert "Chain(NNM, TrimmedMean)" in printed
