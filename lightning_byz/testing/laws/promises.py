"""What a rule says of itself is true: conditions, refusals, coefficients."""

import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.errors import ToleranceError
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Broken, Case, require, require_close, require_equal
from lightning_byz.testing.law import law
from lightning_byz.testing.running import draw, explain, run
from lightning_byz.testing.sizes import equal, size

EXCEPTIONS = frozenset({"agreement", "breakdown", "permutation", "repetition", "scaling", "translation"})
"""The laws from which a rule may excuse itself."""


@law("what the class says of itself can be read", part=0.01)
def class_data(rule: Aggregator, case: Case) -> None:
    """A condition in words, known exceptions, and "no guarantee" only where everything is tolerated."""
    require(
        isinstance(rule.condition, str) and bool(rule.condition), f"condition must be words, not {rule.condition!r}"
    )
    require(isinstance(rule.exceptions, frozenset), f"exceptions must be a frozenset, not {rule.exceptions!r}")
    require(
        rule.exceptions <= EXCEPTIONS,
        f"exceptions {set(rule.exceptions - EXCEPTIONS)} are none of {sorted(EXCEPTIONS)}",
    )
    for name in ("unequal_weights", "random", "uses_reference"):
        require(isinstance(getattr(rule, name), bool), f"{name} must be True or False, not {getattr(rule, name)!r}")
    everything = rule.tolerates(equal(10), 9)
    require(
        everything or rule.condition != "no guarantee", 'condition is "no guarantee", but f = 9 of 10 is not tolerated'
    )
    require(
        not everything or "no guarantee" in rule.condition,
        f"f = 9 of 10 is tolerated, but the condition is {rule.condition!r}",
    )


@law("what is not tolerated is refused, and what is tolerated is not", part=0.6)
def refusals(rule: Aggregator, case: Case) -> None:
    """Every half f of up to 33 workers; at least one number of workers is tolerated."""
    n = case.seed % min(33, case.workers) + 1
    rows = case.normal(n, 2).float()
    for f in {0.0, *(case.whole(0, 2 * n - 1) / 2 for _ in range(6)), (n - 1) // 2 + 0.0, n / 2, (n - 1) / 4}:
        case.note(n=n, f=f, d=2, dtype=rows.dtype)
        if rule.tolerates(equal(n), f):
            require(f < n / 2 or "no guarantee" in rule.condition, "half of the weight or more is tolerated")
            require(run(rule, Stack(rows, f=f)).shape == (2,), "the result has not two coordinates")
        else:
            _refused(rule, Stack(rows, f=f))
    require(
        any(rule.tolerates(equal(count), 0) for count in range(1, 66)),
        "f = 0 is tolerated with no number of workers up to 65",
    )


def _refused(rule: Aggregator, stack: Stack) -> None:
    try:
        run(rule, stack)
    except ToleranceError:
        return
    raise Broken("tolerates() is False, but the rule returned a result; call self.admit(stack) first")


@law("rows without any weight, or no rows, are refused", part=0.01)
def no_weight(rule: Aggregator, case: Case) -> None:
    """With a ToleranceError."""
    for stack in (Stack(torch.ones(3, 2), [0, 0, 0]), Stack(torch.ones(0, 2))):
        case.note(n=len(stack.weights), f=0, weights=stack.weights.tolist())
        try:
            run(rule, stack)
        except ToleranceError:
            continue
        raise Broken("a result was returned; call self.admit(stack) first")


@law("rows without coordinates are no problem", part=0.02)
def no_coordinates(rule: Aggregator, case: Case) -> None:
    """A rank may hold an empty slice."""
    n, limit = size(case, rule)
    case.note(n=n, f=limit, d=0)
    require(run(rule, Stack(torch.ones(n, 0), f=limit)).shape == (0,), "the result is not empty")


@law("coefficients explain the result", part=0.2)
def coefficients(rule: Aggregator, case: Case) -> None:
    """Their sum of rows is the result; they sum to 1 where translation carries over; rows left out have none."""
    n, limit = size(case, rule, least=min(2, case.seed % 3))
    rows, weights = case.normal(n + 1, 40), torch.ones(n + 1, dtype=torch.float64)
    weights[n] = 0.0
    if limit >= 1:
        rows[0] = float("inf")
    if limit >= 2:
        rows[1] = 1e6
    case.note(n=n + 1, f=limit, d=40, dtype=rows.dtype)
    result, shares = explain(rule, Stack(rows, weights, limit))
    require_equal(result, run(rule, Stack(rows, weights, limit)), "explained")
    if shares is None:
        return
    require(
        shares.shape == weights.shape and shares.dtype == torch.float64,
        f"coefficients are {tuple(shares.shape)} of {shares.dtype}",
    )
    if "translation" not in rule.exceptions:
        require(abs(float(shares.sum()) - 1) < 1e-9, f"coefficients sum to {float(shares.sum())}")
    require(
        not bool(shares[n]) and (limit < 1 or not bool(shares[0])),
        f"rows that are broken or without weight have coefficients: {shares.tolist()}",
    )
    require_close(shares @ rows.nan_to_num(posinf=0.0), result, "rows times coefficients")
    if limit >= 2 and rule.kappa(n, limit) is not None:
        require(abs(float(shares[1])) < 1e-2, f"a row of 1e6 has the coefficient {float(shares[1])}")


@law(
    "a rule that cannot draw does not ask for a generator, and one that is given changes nothing",
    where=lambda rule: not rule.random,
    part=0.02,
)
def unused_generator(rule: Aggregator, case: Case) -> None:
    """The pipeline hands every rule a generator."""
    n, limit = size(case, rule)
    rows, given = case.normal(n, 5), torch.Generator().manual_seed(3)
    case.note(n=n, f=limit, d=5)
    state = given.get_state()
    require_equal(
        rule(Stack(rows, f=limit), generator=given), rule(Stack(rows, f=limit), **draw(rule)), "with a generator"
    )
    require(bool((given.get_state() == state).all()), "random is False, but the rule drew from its generator")
