"""What cannot be right is refused before the first step: what was given, what is allowed, what to change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_byz.attacks import Attack
from lightning_byz.data import Partition
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds import arguments
from lightning_byz.rounds.checks import check_memory
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.second_momentum import second_momentum


def check_arguments(
    f: float | str, workers: int | None, attackers: Sequence[int], attack: Attack | None, *, seed: int | None
) -> None:
    """Refuse numbers that no run can use, and warn of an attack that is never used."""
    arguments.check_arguments(f, workers, attackers, attack, seed=seed)
    if (idle := arguments.idle_attack(attackers, attack)) is not None:
        rank_zero_warn(idle)


def check_rules(
    stages: Mapping[str, Any],
    *,
    attack: Attack | None,
    exchange: Exchange | None,
    preaggregators: Sequence[PreAggregator],
) -> None:
    """Refuse what is no stage of its kind; ``attack`` and ``exchange`` may be left out."""
    rest = {"attack": attack, "exchange": exchange, "preaggregators": preaggregators}
    arguments.check_rules(stages["aggregator"], stages["estimator"], **rest)
    arguments.check_stages([("partition", stages["partition"], Partition)])


def refused_comm_hook(hook: Callable[..., Any] | None) -> None:
    """Refuse a hook into DDP's reduction of gradients."""
    if hook is not None:
        raise ValueError(
            f"ddp_comm_hook={getattr(hook, '__name__', hook)}: there is no reduction to hook into, since workers' gradients meet in a rule. Leave it"
            " out; what a worker sends is the estimator's choice."
        )


def check_module(module: pl.LightningModule, placement: Placement, estimator: Estimator, *, synchronized: bool) -> None:
    """Refuse what several workers on one rank cannot do, warn about what one worker per rank should know."""
    arguments.refuse_sparse(module)
    if estimator.points > 1:
        _check_passes(module, estimator)
    if not placement.one_per_rank:
        _check_turns(module, arguments.several(placement))
    arguments.check_synchronized(module, placement, synchronized=synchronized)


def check_run(
    plan: Plan, trainer: pl.Trainer, module: pl.LightningModule, placement: Placement, *, synchronized: bool
) -> None:
    """Refuse what this module and trainer cannot do with these workers."""
    arguments.check_attackers(plan.attackers.workers, placement.workers)
    _check_arriving(plan, trainer, module)
    if plan.code is not None and not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step, and under code= a step is made of rows of several"
            " workers' gradients: use automatic optimization, or leave code out."
        )
    check_module(module, placement, plan.estimator, synchronized=synchronized)


def _check_arriving(plan: Plan, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse what workers that do not all compute at each step cannot do."""
    if plan.in_lock_step:
        return
    name = type(plan.arrivals).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step, and under arrivals={name}(...) a step is made of"
            " messages that waited: use automatic optimization, or arrivals=Synchronous()."
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"accumulate_grad_batches={trainer.accumulate_grad_batches}: under arrivals={name}(...) a worker sends one batch's gradient at a time:"
            " leave it out and give larger batches, or give arrivals=Synchronous()."
        )
    schedulers = [callback for callback in trainer.callbacks if isinstance(callback, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    if any(max(one.scheduling.values()) > 1 for one in schedulers):
        raise ValueError(
            f"GradientAccumulationScheduler: under arrivals={name}(...) a worker sends one batch's gradient at a time: leave it out."
        )


def _check_turns(module: pl.LightningModule, several: str) -> None:
    """Refuse what workers that take turns cannot do."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step; {several} share it."
            " Run one worker per rank (workers=None), or use automatic optimization."
        )
    if any(isinstance(part, Metric) and part.dist_sync_on_step for part in module.modules()):
        raise ValueError(
            f"A metric with dist_sync_on_step=True waits for all ranks in training_step, and {several} run in turn: leave it out, the values of a"
            " step are reduced over workers without it."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"training_step(dataloader_iter) fetches its own batches, and {several} need one each: take a batch instead."
        )


def _check_passes(module: pl.LightningModule, estimator: Estimator) -> None:
    """Refuse what cannot be evaluated twice."""
    twice = f"{type(estimator).__name__} evaluates training_step twice on each batch"
    remedy = "or an estimator with one point, such as WorkerMomentum()."
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step, and {twice}: use automatic optimization, {remedy}"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"training_step(dataloader_iter) fetches its own batches, and {twice}: take a batch instead, {remedy}"
        )


def check_optimizers(
    module: pl.LightningModule,
    optimizers: Sequence[Optimizer],
    plan: Plan,
) -> None:
    """Refuse optimizers that leave nothing to aggregate or would feed a memory several times a step; warn of a second average over time."""
    if not any(
        parameter.requires_grad
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ):
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter in its {len(optimizers)} optimizer(s): there is no gradient to aggregate."
            " Set requires_grad=True on what should train, and return an optimizer over it from configure_optimizers."
        )
    check_memory(plan.estimator, blank := plan.estimator.init(torch.zeros(2)), coordinates=2)
    several = any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers)
    if several and not plan.in_lock_step:
        raise ValueError(
            "LBFGS evaluates the gradient several times a step, and under arrivals= a worker computes once and its message waits: use another"
            " optimizer, or arrivals=Synchronous()."
        )
    back = None if plan.downlink is None else plan.downlink.link
    for name, link in (("link", plan.link), ("downlink.link", back)) if several else ():
        if link is not None and (link.at_worker or link.at_rules):
            raise ValueError(
                f"LBFGS evaluates the gradient several times a step, and {name}={link!r} would remember each of them: use another optimizer, or"
                " Direct()."
            )
    if blank and several:
        raise ValueError(
            "LBFGS evaluates the gradient several times a step, feeding the workers' memory each time: use estimator=Gradient()."
        )
    if (twice := second_momentum(plan.estimator, optimizers)) is not None:
        rank_zero_warn(twice)
