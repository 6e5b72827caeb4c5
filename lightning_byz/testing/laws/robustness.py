"""Any f rows, whatever they hold: the result is finite always, and near the honest mean where a bound is known."""

import itertools
import math

import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.errors import TooManyFaults
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Broken, Case, NothingToCheck, require, shown
from lightning_byz.testing.faults import Attacked, attacked
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import COALITIONS, DTYPES, cast, coalition
from lightning_byz.testing.running import reference, run
from lightning_byz.testing.sizes import fraction_beyond, most, size, tolerated, uneven


def _with_reference(rule: Aggregator, case: Case, problem: Attacked) -> Attacked:
    place = reference(case, rule, problem.rows.shape[1], problem.rows.dtype)
    return Attacked(problem.rows, problem.weights, problem.f, problem.honest, problem.shares, place)


def _judge(rule: Aggregator, problem: Attacked) -> None:
    """Let the rule aggregate, and compare with its own bound."""
    result = run(rule, problem.stack())
    unit = 1.0 if rule.unequal_weights else float(problem.weights.max())
    problem.judge(result, rule.kappa(float(problem.weights.sum()) / unit, problem.f / unit))


@law("whatever the rows of f workers hold, the result is finite, and within kappa where it is known")
def faults(rule: Aggregator, case: Case) -> None:
    """Weights of 1; every dtype, every f, every kind of honest rows and of coalition."""
    n, limit = size(case, rule)
    attackers = limit if case.chance(0.5) else case.whole(0, limit)
    f = fraction_beyond(case, rule, torch.ones(n), float(attackers))
    problem = attacked(case, torch.ones(n, dtype=torch.float64), attackers, f, DTYPES[case.seed // 3 % len(DTYPES)])
    _judge(rule, _with_reference(rule, case, problem))


@law(
    "f is a weight: whatever rows of that weight hold, the result is finite and within kappa",
    where=lambda rule: rule.unequal_weights,
    part=0.6,
)
def faulty_weight(rule: Aggregator, case: Case) -> None:
    """Unequal weights; the honest rows counted by any shares that sum to W - f."""
    n = case.whole(1, min(17, case.workers))
    attackers, weights = case.whole(0, (n - 1) // 2), uneven(case, n)
    f, total = float(weights[n - attackers :].sum()), float(weights.sum())
    f = fraction_beyond(case, rule, weights, f) if total > 0 else f
    case.note(weights=weights.tolist())
    if total == 0 or float(weights[: n - attackers].sum()) == 0 or not tolerated(rule, weights, f):
        raise NothingToCheck
    _judge(rule, _with_reference(rule, case, attacked(case, weights, attackers, f, DTYPES[case.seed // 3 % 2])))


@law(
    "the bound holds for every choice of honest rows at once", where=lambda rule: rule.kappa(5, 0) is not None, part=0.3
)
def choices(rule: Aggregator, case: Case) -> None:
    """Up to seven workers."""
    n = case.seed % min(7, case.workers) + 1
    limit = most(rule, n)
    if limit < 0:
        raise NothingToCheck
    f = case.whole(0, limit)
    honest = case.normal(n - f, 3)
    rows = torch.cat([honest, coalition(case, honest, f)])
    case.note(n=n, f=f, d=3, dtype=rows.dtype)
    result, kappa = run(rule, Stack(rows, f=f, reference=reference(case, rule, 3))), rule.kappa(n, f)
    usable = [row for row in range(n) if bool((rows[row].abs() <= 2.0**480).all())]
    for chosen in itertools.combinations(usable, n - f):
        case.note(chosen=chosen)
        Attacked(rows, torch.ones(n), f, rows[list(chosen)], torch.ones(n - f, dtype=torch.float64)).judge(
            result, kappa
        )


@law("rows of 3e38 and of 1e10 among rows of 1 do not touch the choice among these", part=0.1)
def magnitudes(rule: Aggregator, case: Case) -> None:
    """Common parts cost no digits either."""
    n, limit = size(case, rule, least=1)
    shift = case.one_of([0.0, 0.0, 1e4])
    honest = case.normal(n - limit, 6).float() + shift
    sizes = torch.tensor([3e38, 1e10, 1e10, -3e38, 1e19])[torch.arange(limit) % 5]
    rows = torch.cat([sizes[:, None].repeat(1, 6), honest])
    case.note(n=n, f=limit, d=6, dtype=rows.dtype, shift=shift)
    place = reference(case, rule, 6, torch.float32)
    _judge(rule, Attacked(rows, torch.ones(n).double(), float(limit), honest, torch.ones(n - limit).double(), place))


@law(
    "an attacker who searches by trial finds nothing beyond kappa",
    where=lambda rule: rule.kappa(5, 0) is not None,
    part=0.03,
)
def searching(rule: Aggregator, case: Case) -> None:
    """Rows are moved as long as error^2 / (kappa variance) grows."""
    n, limit = size(case, rule, least=1)
    while n > 11:
        n, limit = size(case, rule, least=1)
    honest, kappa = case.normal(n - limit, case.whole(1, 3)), rule.kappa(n, limit)
    if kappa is None:
        raise NothingToCheck
    case.note(n=n, f=limit, d=honest.shape[1], dtype=honest.dtype)
    climb(rule, case, honest, limit, moves=40)


def climb(rule: Aggregator, case: Case, honest: torch.Tensor, attackers: int, *, moves: int) -> float:
    """The largest ratio that was found; raises where it is beyond 1."""
    n = len(honest) + attackers
    bad, best = cast(coalition(case, honest, attackers).nan_to_num(), honest.dtype), -1.0
    kappa, shares = rule.kappa(n, attackers), torch.ones(len(honest), dtype=torch.float64)
    for move in range(moves):
        step = (
            10 ** case.real(-3, 1)
            * case.normal(case.one_of([1, attackers]), honest.shape[1])
            * case.one_of([0.0, 1.0, 1.0] if move else [0.0])
        )
        trial = bad + step * (
            case.whole(0, attackers - 1) == torch.arange(attackers)[:, None] if case.chance(0.5) else 1.0
        )
        problem = Attacked(torch.cat([honest, trial]), torch.ones(n).double(), float(attackers), honest, shares)
        result = run(rule, problem.stack())
        problem.judge(result, kappa)
        ratio = math.inf if kappa is None else problem.ratio(result, kappa)
        if ratio >= best:
            bad, best = trial, ratio
    return best


@law("more broken rows than f are an error, not a result", part=0.1)
def too_many(rule: Aggregator, case: Case) -> None:
    """TooManyFaults names them."""
    n, limit = size(case, rule)
    if n < limit + 2:
        raise NothingToCheck
    rows = case.normal(n, 3)
    rows[: limit + 1] = float("nan")
    case.note(n=n, f=limit, d=3, dtype=rows.dtype, nan=limit + 1)
    try:
        result = run(rule, Stack(rows, f=limit))
    except TooManyFaults as error:
        require(str(list(range(limit + 1))) in str(error), f"TooManyFaults does not name the rows: {error}")
        return
    raise Broken(f"a result was returned: {result.tolist()}")


@law(
    "however large the rows of f workers are, they move the result no further than some multiple of the honest rows",
    exception="breakdown",
    where=lambda rule: "no guarantee" not in rule.condition,
    part=0.15,
)
def breakdown(rule: Aggregator, case: Case) -> None:
    """A million times their size, where no kappa says less."""
    n, limit = size(case, rule, least=1)
    honest, huge = case.normal(n - limit, 3), 10.0 ** case.whole(9, 60)
    bad = huge * case.one_of([case.normal(1, 3).repeat(limit, 1), case.normal(limit, 3), torch.ones(limit, 3).double()])
    order, place = case.order(n), reference(case, rule, 3)
    case.note(n=n, f=limit, d=3, dtype=honest.dtype, attackers=f"{limit} of size {huge:g}")
    result = run(rule, Stack(torch.cat([honest, bad])[order], f=limit, reference=place))
    allowed = 1e6 * (1 + float(honest.abs().max()) + (0.0 if place is None else float(place.abs().max())))
    require(float(result.abs().max()) <= allowed, f"the result is {shown(result)}")


@law("each kind of coalition alone is withstood", part=0.2)
def coalitions(rule: Aggregator, case: Case) -> None:
    """As many attackers as the rule tolerates of eleven or a few more workers."""
    name, n = list(COALITIONS)[case.seed % len(COALITIONS)], min(case.whole(11, 15), case.workers)
    limit = most(rule, n)
    if limit < 1:
        raise NothingToCheck
    honest = case.normal(n - limit, 5).float()
    rows = torch.cat([COALITIONS[name](case, honest, limit), honest])
    case.note(n=n, f=limit, d=5, dtype=rows.dtype, attackers=repr(name))
    place = reference(case, rule, 5, torch.float32)
    _judge(rule, Attacked(rows, torch.ones(n).double(), float(limit), honest, torch.ones(n - limit).double(), place))
