"""Before the first step: whether the rules tolerate what they are asked to, and what a run says of itself."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_byz.aggregators import Aggregator
from lightning_byz.errors import ToleranceError, warn_once
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.kernels import block_size, paths
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import derive
from lightning_byz.rounds.attackers import Attackers
from lightning_byz.rounds.coding import warn_of_crowds
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.remedies import refused
from lightning_byz.rounds.weights import ROUNDING, worker_weights
from lightning_byz.stack import Slice


def fitting_defence(f: float | str, make: Callable[[float], Defence], *, workers: int, sliced: bool) -> Defence:
    """Return the defence for ``f``, or for the largest whole number of workers that its rules tolerate.

    Raises:
        ToleranceError: If a rule cannot tolerate ``f``.
        ValueError: If ranks hold slices and a rule mixes coordinates past the Stack's methods.

    """
    if not isinstance(f, str):
        defence = make(float(f))
        try:
            defence.check()
        except ToleranceError as error:
            raise refused(defence, error) from None
    else:
        defence = _largest(make, workers)
    if sliced:
        refuse_mixing(defence)
    return defence


def planned_defence(
    f: float | str,
    rules: tuple[Aggregator, Sequence[PreAggregator]],
    plan: Plan,
    weights: Sequence[float | int] | None,
    exchange: Exchange,
    placement: Placement,
    *,
    seed: int,
    steps: int | None = None,
) -> Defence:
    """Return :func:`fitting_defence`, and warn of what it does not protect against; only rank 0 repeats the warnings of rules.

    Args:
        f: How many workers may be Byzantine.
        rules: Aggregator and pre-aggregators.
        plan: What steps are made of besides.
        weights: How much each worker counts, uncapped; ``None`` for all alike.
        exchange: How messages reach the rules.
        placement: Which workers live here.
        seed: The run's seed.
        steps: How many steps the run has; ``None`` where nothing tells.

    """
    n, (aggregator, before) = placement.workers, rules
    if plan.code is not None:
        defence = Defence(n, float(f), aggregator, seed=seed)
        if placement.rank == 0:
            warn_of_crowds(plan.code, n, plan.attackers.workers)
        return defence
    capped = None if weights is None else worker_weights(weights, plan.capped_at_once, workers=n)

    def make(tolerated: float) -> Defence:
        return Defence(n, tolerated, aggregator, tuple(before), capped, seed, share=plan.share)

    with warnings.catch_warnings():
        if placement.rank != 0:
            warnings.simplefilter("ignore")
        defence = fitting_defence(f, make, workers=n, sliced=exchange.slices and placement.ranks > 1)
        warn_of_none(f, defence)
        warn_of_many(defence, plan.attackers)
        plan.check(defence, steps)
    return defence


def warn_of_many(defence: Defence, attackers: Attackers) -> None:
    """Warn where more weight attacks than is tolerated."""
    attacking = float(len(attackers.workers)) if defence.share is not None else defence.weight(attackers.workers)
    tolerated = defence.f if defence.share is not None else defence.f_weight
    if attacking > tolerated * (1 + ROUNDING):
        by_weight = f" (by weight, {attacking:g} and {defence.f_weight:g} of {sum(defence.weights or ()):g})"
        warnings.warn(
            f"{len(attackers.workers)} workers attack in this experiment and f = {defence.f:g} are tolerated"
            f"{by_weight if defence.weights and defence.share is None else ''}: no guarantee holds.",
            stacklevel=2,
        )


def refuse_mixing(defence: Defence) -> None:
    """Refuse a rule that computes across coordinates by itself: on a slice it would see a part and not know it."""
    if any(_mixes(defence, trial) for trial in range(8)):
        names = [type(rule).__name__ for rule in (*defence.preaggregators, defence.aggregator)]
        raise ValueError(
            f"{' -> '.join(names)} gives other values on a slice of the coordinates than on all of them, and on several ranks each rank sees a slice:"
            " compute across coordinates through stack.squared_distances(), stack.squared_distances_to(point) and stack.squared_norms()."
        )


def _mixes(defence: Defence, trial: int) -> bool:
    """Whether the rules see, on either half of some coordinates, other values there than on all of them, without asking for the rest."""
    asked, width = False, block_size(128)
    draws = torch.Generator().manual_seed(trial)
    rows = torch.randn(defence.workers, 2 * width, generator=draws)
    rows[:, width:] *= 10.0 * torch.rand(defence.workers, 1, generator=draws)
    reference = torch.randn(2 * width, generator=draws) if trial % 2 else None  # a first step, or a later one
    whole = defence.aggregate(defence.stack(rows, reference=reference), step=0)[0]
    start = width * (trial // 2 % 2)

    def gather(partials: Tensor) -> Tensor:
        nonlocal asked
        asked = True
        halves = [partials, torch.zeros_like(partials)]
        return torch.cat(halves[::-1] if start else halves)

    own = slice(start, start + width)
    part = Slice(start, start + width, 2 * width, gather, lambda counts: counts)
    shown = defence.stack(rows[:, own], slice=part, reference=None if reference is None else reference[own])
    sliced = defence.aggregate(shown, step=0)[0]
    return not asked and not torch.allclose(sliced, whole[own], rtol=1e-4, atol=1e-5)


def refuse_different_modules(module: nn.Module, exchange: Exchange, device: torch.device) -> None:
    """Refuse ranks whose modules have other parameters or buffers than rank 0's. Every rank must call it."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    words = [f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}" for name, tensor in tensors]
    own = torch.tensor([derive(0, *words)], dtype=torch.int64, device=device)
    differs = (exchange.broadcast(own) != own).to(torch.int64)
    ranks = int(exchange.all_reduce(differs))
    if ranks:
        raise ValueError(
            f"{ranks} ranks built a {type(module).__name__} whose parameters or buffers differ from rank 0's in name, shape, dtype or requires_grad"
            f" ({len(tensors)} of them on this rank): build the same module on every rank."
        )


def agree_on_kernels(exchange: Exchange, device: torch.device) -> None:
    """Take torch's kernels everywhere if a rank has no compiled ones: sums may differ in a bit. Every rank must call it."""
    lacking = int(exchange.all_reduce(torch.tensor([int(not paths.own())], dtype=torch.int64, device=device)))
    if lacking and paths.own():
        warn_once(
            f"{lacking} rank{'s have' if lacking > 1 else ' has'} no compiled kernels (pip install 'lightning-byz[fast]'), so that none uses them"
        )
    paths.share(not lacking)


def warn_of_none(f: float | str, defence: Defence) -> None:
    """Warn where the largest number that the rules tolerate is none."""
    if isinstance(f, str) and defence.f == 0:
        warnings.warn(
            f"f={f!r} is 0: {_rules(defence)} tolerates no Byzantine worker among {_counted(defence.workers, 'worker')}."
            " Add workers, choose another rule, or give f=0 to say so.",
            stacklevel=2,
        )


def start_up_line(
    defence: Defence,
    exchange: Exchange,
    placement: Placement,
    plan: Plan = Plan(),  # noqa: B008 - frozen
    *,
    anytime: object | None = None,
    parameters: int = 0,
) -> str:
    """Return one line on rules, averaging, f, attackers, exchange, trust, threads, kernels, weights, and the workers that could together exceed f."""
    line = (
        f"lightning_byz: {_counted(placement.workers, 'worker')} on {_counted(placement.ranks, 'rank')}, f = {defence.f:g};"
        f" {_rules(defence, plan, anytime)}; {_attacking(plan.attackers)}; exchange {type(exchange).__name__} trusts {exchange.trusts};"
        f" {_counted(torch.get_num_threads(), 'torch thread')} per rank;"
        f"{_cost(defence) if plan.code is None else ''} {paths.described(placement.workers * parameters)}"
    )
    weights = defence.weights or [1.0] * placement.workers
    crowded = [
        list(workers)
        for workers in map(placement.of, range(placement.ranks))
        if len(workers) > 1 and sum(weights[worker] for worker in workers) > defence.f_weight * (1 + ROUNDING)
    ]
    if placement.ranks > 1 and crowded:
        line += f"; one broken machine exceeds f: workers {', '.join(map(str, crowded))} share a rank"
    if plan.code is not None or not plan.in_lock_step or defence.weights is None:
        return line + plan.described(defence)
    return line + _on_weights(defence, defence.weights)


def _rules(defence: Defence, plan: Plan | None = None, anytime: object | None = None) -> str:
    """Return the chain from what a worker sends to the aggregate, and what averages the steps made of it."""
    sent = () if plan is None else (plan.estimator, *plan.ways)
    back = None if plan is None else plan.downlink
    rules = (*defence.preaggregators, defence.aggregator, back)
    if plan is not None and plan.code is not None:
        sent, rules = (plan.code,), (plan.estimator,)
    stages = (*sent, *rules, anytime)
    return " -> ".join(repr(stage) for stage in stages if stage is not None)


def _cost(defence: Defence) -> str:
    """Return what the rules cost in a step; nothing where one of them does not say."""
    costs = [rule.copies for rule in (*defence.preaggregators, defence.aggregator)]
    known = [cost[0 if paths.chosen() else 1] for cost in costs if cost is not None]
    return f" the rules take as long as {sum(known):.2g} copies of all messages;" if len(known) == len(costs) else ""


def _attacking(attackers: Attackers) -> str:
    """Return who attacks, and how."""
    if attackers.attack is None or not attackers.workers:
        return "no attack"
    ids = ", ".join(map(str, attackers.workers))
    return f"worker{'s' * (len(attackers.workers) > 1)} {ids} attack{'s' * (len(attackers.workers) == 1)} with {attackers.attack!r}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _on_weights(defence: Defence, weights: Sequence[float | int]) -> str:
    """Return what unequal weights mean for f."""
    text = f"; weights {', '.join(f'{weight:.4g}' for weight in weights)}"
    return f"{text}, of which any {defence.f:g} workers have at most {defence.f_weight:.4g}" if defence.f else text


def _largest(make: Callable[[float], Defence], workers: int) -> Defence:
    for f in range((workers - 1) // 2, 0, -1):
        defence = make(float(f))
        try:
            defence.check()
        except ToleranceError:
            continue
        return defence
    defence = make(0.0)
    defence.check()
    return defence
