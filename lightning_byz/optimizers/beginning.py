"""The beginning of a plain loop's run: everything is checked, and all processes start alike."""

import logging
import warnings
from collections.abc import Sequence
from os import environ
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_byz.aggregators import Aggregator
from lightning_byz.arrivals import Arrivals
from lightning_byz.attacks import Attack
from lightning_byz.compressors import Compressor
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import AllToAll, Exchange, Local, Placement
from lightning_byz.exchange.placement import world_size
from lightning_byz.links import Downlink, Link
from lightning_byz.optimizers.anytime import Anytime
from lightning_byz.optimizers.plain_run import PlainRun
from lightning_byz.optimizers.refusals import check_module, check_optimizer, check_weights_here
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds import Attackers, WorkerBuffers, arguments, start_up
from lightning_byz.rounds.checks import check_memory
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.second_momentum import second_momentum
from lightning_byz.rounds.trained import held_by, trained_by
from lightning_byz.rounds.ways import check_parameters, checked_ways
from lightning_byz.rounds.weights import checked_weights

_log = logging.getLogger(__name__)


def begun(
    optimizer: Optimizer,
    module: nn.Module,
    *,
    f: float | str,
    aggregator: Aggregator,
    workers: int | None,
    preaggregators: Sequence[PreAggregator],
    estimator: Estimator,
    anytime: Anytime | None,
    attackers: Sequence[int],
    attack: Attack | None,
    exchange: Exchange | None,
    arrivals: Arrivals,
    link: Link,
    compressor: Compressor,
    downlink: Compressor | Downlink | None,
    weights: Any,
    age_decay: float | None,
    max_share: float | None,
    buffers: str,
    seed: int | None,
    digest_every: int | None,
) -> PlainRun:
    """Return a run that may start; the arguments are those of :class:`RobustOptimizer`. Every rank must call it."""
    check_optimizer(optimizer)
    check_module(module)
    arguments.check_arguments(f, workers, attackers, attack, seed=seed)
    arguments.check_rules(aggregator, estimator, attack=attack, exchange=exchange, preaggregators=preaggregators)
    arguments.check_stages(("anytime", stage, Anytime) for stage in [anytime] if stage is not None)
    check_weights_here(weights)
    weights = checked_weights(weights, max_share, workers)
    arguments.check_arrivals(arrivals, weights, age_decay)
    back = checked_ways(link, compressor, downlink)
    arguments.check_buffers(buffers)
    arguments.check_digest_every(digest_every)
    ranks = world_size()
    exchange = exchange or (Local() if ranks == 1 else AllToAll())
    placement = exchange.place(workers or ranks)
    arguments.check_attackers(attackers, placement.workers)
    arguments.refuse_sparse(module)
    arguments.check_synchronized(module, placement)
    check_memory(estimator, estimator.init(torch.zeros(2)), coordinates=2)
    for warning in (arguments.idle_attack(attackers, attack), second_momentum(estimator, [optimizer])):
        if placement.rank == 0 and warning is not None:
            warnings.warn(warning, stacklevel=3)
    _start_alike(optimizer, module, exchange, placement)
    seed = int(environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
    by = Attackers(tuple(attackers), attack)
    plan = Plan(estimator, by, arrivals, weights, max_share, age_decay, link, compressor, back)
    check_parameters(plan, [optimizer], exchange, placement)
    rules = aggregator, preaggregators
    defence = start_up.planned_defence(f, rules, plan, plan.constant, exchange, placement, seed=seed)
    if anytime is not None:
        anytime.attach(optimizer)
    if placement.rank == 0:
        known = {"anytime": anytime, "parameters": sum(one.numel() for one in trained_by(optimizer))}
        _log.info(start_up.start_up_line(defence, exchange, placement, plan, **known))
    own = WorkerBuffers(module, placement.local, rule=arguments.BUFFER_RULES[buffers])
    return PlainRun(
        optimizer,
        module,
        plan.robust(defence),
        exchange,
        placement,
        buffers=own,
        digest_every=digest_every,
    )


def _start_alike(optimizer: Optimizer, module: nn.Module, exchange: Exchange, placement: Placement) -> None:
    """Give all ranks rank 0's parameters and buffers, and the same kernels. Every rank must call it."""
    device = trained_by(optimizer)[0].device
    start_up.refuse_different_modules(module, exchange, device)
    start_up.agree_on_kernels(exchange, device)
    if placement.ranks == 1:
        return
    tensors = [tensor for _, tensor in held_by(module, [optimizer])]
    with torch.no_grad():
        for tensor in {id(one): one for one in (*tensors, *module.parameters(), *module.buffers())}.values():
            tensor.copy_(exchange.broadcast(tensor))
