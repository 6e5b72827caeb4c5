"""Weight is repetition; no weight is absence; only proportions count."""

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.errors import ToleranceError
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Broken, Case, NothingToCheck, require, require_close, require_equal
from lightning_byz.testing.faults import Attacked
from lightning_byz.testing.law import law
from lightning_byz.testing.running import explain, reference, run
from lightning_byz.testing.sizes import fraction_beyond, generic, most, size, tolerated
from lightning_byz.testing.ties import agree

_ABSENT = torch.tensor([1e200, float("nan"), 3.0, 0.0, -7.0, float("inf")], dtype=torch.float64)


def _rows(case: Case, n: int) -> Tensor:
    rows = case.normal(n, 6) + 10
    rows[0] *= 1e3
    return rows


@law("integer weight w is the row repeated w times", exception="repetition", where=lambda rule: rule.unequal_weights)
def repetition(rule: Aggregator, case: Case) -> None:
    """Weights from 0 to 3."""
    weights = torch.randint(0, 4, (case.whole(1, min(12, case.workers)),), generator=case.generator)
    total, present = int(weights.sum()), int((weights > 0).sum())
    if present in (0, 2):  # two rows are equally far from any rule between them: a tie, broken by rounding
        raise NothingToCheck
    f = fraction_beyond(case, rule, weights, float(case.whole(0, max(most(rule, total), 0))))
    if not tolerated(rule, weights, f):
        raise NothingToCheck
    rows, place = _rows(case, len(weights)), reference(case, rule, 6)
    case.note(n=len(weights), f=f, d=6, dtype=rows.dtype, weights=weights.tolist())
    weighted = Stack(rows, weights, f, place)
    agree(
        rule,
        weighted,
        run(rule, weighted),
        run(rule, Stack(rows.repeat_interleave(weights, 0), None, f, place)),
        "with weights, not rows repeated",
    )


@law("a row without weight is a row that is not there", part=0.5)
def absence(rule: Aggregator, case: Case) -> None:
    """Whatever the absent rows hold. Of a rule whose draws follow the rows, the other rows keep theirs."""
    n, f = generic(case, rule)
    slots = n + case.whole(1, 5)
    absent = torch.zeros(slots, dtype=torch.bool).index_fill(0, case.order(slots)[n:], True)
    rows, place = _rows(case, slots), reference(case, rule, 6)
    other = torch.where(absent[:, None], _ABSENT, rows)
    case.note(n=slots, f=f, d=6, dtype=rows.dtype, absent=absent.nonzero()[:, 0].tolist())
    result, shares = explain(rule, Stack(other, (~absent).double(), f, place))
    require_equal(result, run(rule, Stack(rows, (~absent).double(), f, place)), "with other values in the absent rows")
    require(shares is None or not bool(shares[absent].any()), f"coefficients of absent rows are not zero: {shares}")
    if not (rule.random and "permutation" in rule.exceptions):
        agree(
            rule,
            Stack(rows[~absent], None, f, place),
            result,
            run(rule, Stack(rows[~absent], None, f, place)),
            "with rows without weight",
        )


@law("weights and f times the same factor change nothing", part=0.5)
def proportions(rule: Aggregator, case: Case) -> None:
    """Factors that are no powers of two, and very large and small ones."""
    n, f = generic(case, rule)
    weights = (
        torch.randint(1, 4, (n,), generator=case.generator).double()
        if rule.unequal_weights and case.chance(0.6)
        else torch.ones(n).double()
    )
    factor, rows, place = (
        case.one_of([0.1, 1 / 7, 1e-3, 3.0, 1e12, 1e30, 1e-30]),
        _rows(case, n),
        reference(case, rule, 6),
    )
    f = f * float(weights.sum()) / n
    if not tolerated(rule, weights, f):
        raise NothingToCheck
    case.note(n=n, f=f, d=6, dtype=rows.dtype, weights=weights.tolist(), factor=factor)
    stack = Stack(rows, weights, f, place)
    agree(rule, stack, run(rule, Stack(rows, weights * factor, f * factor, place)), run(rule, stack), "with the factor")


@law("of a row that is left out, no sliver is kept where sums of weights are off by rounding", part=0.2)
def slivers(rule: Aggregator, case: Case) -> None:
    """Rows of 3e38, as many as f tells, where f and the total were added up from weights such as 0.1."""
    n, limit = size(case, rule, least=1)
    if n - limit < 2 or rule.kappa(n, limit) is None:
        raise NothingToCheck
    weight = case.one_of([0.1, 1 / 7, 1e-3, 0.7])
    weights = torch.full((n,), weight, dtype=torch.float64)
    if rule.unequal_weights and case.chance(0.5):
        weights[-1] *= 1 + 1e-12
    f = sum([weight] * limit)
    case.note(n=n, f=f, d=6, dtype=torch.float32, weight=weight)
    honest = case.normal(n - limit, 6).float() + 10
    rows = torch.cat([torch.full((limit, 6), 3e38), honest])
    problem = Attacked(
        rows, weights, f, honest, torch.ones(n - limit).double(), reference(case, rule, 6, torch.float32)
    )
    problem.judge(run(rule, problem.stack()), rule.kappa(n, limit))


@law("unequal weights are refused", where=lambda rule: not rule.unequal_weights, part=0.1)
def refused_weights(rule: Aggregator, case: Case) -> None:
    """With a ToleranceError, also where they differ little; equal ones and zeros are taken."""
    n, _ = size(case, rule)
    weights = torch.full((n + 1,), case.one_of([1.0, 0.1, 7.0]), dtype=torch.float64)
    weights[case.whole(0, n)] = 0.0
    case.note(n=n + 1, f=0, weights=weights.tolist())
    require_close(
        run(rule, Stack(torch.ones(n + 1, 2), weights)),
        torch.ones(2),
        "of rows of ones",
        1e-6 if "agreement" not in rule.exceptions else 1e30,
    )
    weights[weights.nonzero()[0]] *= case.one_of([2.0, 1.01])
    case.note(weights=weights.tolist())
    if n > 1:
        try:
            run(rule, Stack(torch.ones(n + 1, 2), weights))
        except ToleranceError:
            return
        raise Broken("unequal weights were taken")
