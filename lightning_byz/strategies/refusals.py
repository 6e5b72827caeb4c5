"""What cannot be right is refused before the first step: what was given, what is allowed, what to change."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.attacks.attack import check_signature
from lightning_byz.data import Partition
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import PreAggregator


def check_arguments(
    f: float | str, workers: int | None, attackers: Sequence[int], attack: Attack | None, *, seed: int | None
) -> None:
    """Refuse numbers that no run can use."""
    if f != "max" and (isinstance(f, bool) or not isinstance(f, int | float) or not math.isfinite(f) or f < 0):
        raise ValueError(
            f"f={f!r}: the number of Byzantine workers to tolerate must be finite and 0 or more, or 'max'."
        )
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ValueError(f"workers={workers!r}: give 1 or more logical workers, or None for one per rank.")
    if seed is not None and type(seed) is not int:
        raise ValueError(f"seed={seed!r}: give a whole number, or None for PL_GLOBAL_SEED.")
    if not isinstance(attackers, Sequence) or any(type(worker) is not int for worker in attackers):
        raise ValueError(
            f"attackers={attackers!r}: give a list of worker ids, which are whole numbers, such as [6, 7]."
        )
    if len(set(attackers)) != len(attackers):
        raise ValueError(f"attackers={list(attackers)} names a worker twice: give each id once.")
    if attackers and attack is None:
        raise ValueError(
            f"attackers={list(attackers)} without an attack would behave honestly: give attack=, such as SignFlip(), or leave attackers out."
        )
    if attack is not None and not attackers:
        rank_zero_warn(
            f"attack={attack!r} is never used, as nobody attacks: give attackers=, the ids of those who do, or leave attack out."
        )


def check_digest_every(digest_every: int | None) -> None:
    """Refuse what is no number of steps."""
    if digest_every is not None and (type(digest_every) is not int or digest_every < 1):
        raise ValueError(
            f"digest_every={digest_every!r}: give the number of steps, 1 or more, between two looks at whether ranks have drifted apart, or None."
        )


def check_attackers(attackers: Sequence[int], workers: int) -> None:
    """Refuse ids that no worker has."""
    outside = [worker for worker in attackers if not 0 <= worker < workers]
    if outside:
        raise ValueError(
            f"attackers={list(attackers)}: {outside} are no worker ids; the {workers} workers are 0 to {workers - 1}."
        )


def check_rules(
    stages: Mapping[str, object],
    *,
    attack: Attack | None,
    exchange: Exchange | None,
    preaggregators: Sequence[PreAggregator],
) -> None:
    """Refuse what is no stage of its kind; ``attack`` and ``exchange`` may be left out."""
    kinds = {"aggregator": Aggregator, "estimator": Estimator, "partition": Partition}
    check_stages((name, stage, kinds[name]) for name, stage in stages.items())
    check_several("preaggregators", preaggregators, PreAggregator)
    check_stages(("attack", stage, Attack) for stage in [attack] if stage is not None)
    check_stages(("exchange", stage, Exchange) for stage in [exchange] if stage is not None)
    estimator = stages["estimator"]
    assert isinstance(estimator, Estimator)
    check_points(estimator)
    if attack is not None:
        check_signature(attack)


def refused_comm_hook(hook: Callable[..., Any] | None) -> None:
    """Refuse a hook into DDP's reduction of gradients."""
    if hook is not None:
        raise ValueError(
            f"ddp_comm_hook={getattr(hook, '__name__', hook)}: there is no reduction to hook into, since workers' gradients meet in a rule. Leave it"
            " out; what a worker sends is the estimator's choice."
        )


def check_points(estimator: Estimator) -> None:
    """Refuse an estimator that asks for more gradients than a worker computes."""
    if estimator.points not in (1, 2):
        raise ValueError(
            f"{type(estimator).__name__}.points is {estimator.points}: workers compute one gradient per batch, where the parameters are, or a second"
            " one where their last estimate was made. Give an estimator whose points is 1 or 2."
        )


def check_several(name: str, stages: object, kind: type) -> None:
    """Refuse what is not a list of instances."""
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise TypeError(f"{name}={stages!r}: give a list, e.g. [{_EXAMPLES[kind]}], which may be empty.")
    check_stages((name, stage, kind) for stage in stages)


def check_stages(stages: Iterable[tuple[str, object, type]]) -> None:
    """Refuse a stage that is not an instance of its class."""
    for name, stage, kind in stages:
        if not isinstance(stage, kind):
            given = f"the class {stage.__name__}" if isinstance(stage, type) else repr(stage)
            raise TypeError(
                f"{name}={given}: give an instance of {'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}, e.g. {_EXAMPLES[kind]}."
            )


def check_module(module: pl.LightningModule, placement: Placement, estimator: Estimator, *, synchronized: bool) -> None:
    """Refuse what several workers on one rank cannot do, warn about what one worker per rank should know."""
    several = f"{placement.workers} logical workers on {placement.ranks} rank{'s' * (placement.ranks > 1)}"
    sparse = [name for name, part in module.named_modules() if getattr(part, "sparse", False) is True]
    if sparse:
        raise ValueError(
            f"'{sparse[0]}' has sparse gradients (sparse=True), and rules aggregate dense vectors: give it sparse=False."
        )
    if estimator.points > 1:
        _check_passes(module, estimator)
    synchronized = synchronized or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())
    if placement.one_per_rank:
        if synchronized and placement.ranks > 1:
            warnings.warn(
                "SyncBatchNorm mixes the workers' activations before any robust rule sees them: a Byzantine worker can poison everyone's batch.",
                stacklevel=2,
            )
        return
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step; {several} share it."
            " Run one worker per rank (workers=None), or use automatic optimization."
        )
    if synchronized:
        raise ValueError(
            f"SyncBatchNorm waits for all ranks in each forward pass, and {several} run in turn: use BatchNorm or one worker per rank."
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


def check_optimizers(module: pl.LightningModule, optimizers: Sequence[Optimizer], *, has_memory: bool) -> None:
    """Refuse optimizers that leave nothing to aggregate or would feed a memory several times a step."""
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
    if has_memory and any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS evaluates the gradient several times a step, feeding the workers' memory each time: use estimator=Gradient()."
        )


_EXAMPLES: dict[type, str] = {
    Aggregator: "CoordinateMedian()",
    PreAggregator: "NNM()",
    Estimator: "WorkerMomentum(beta=0.9)",
    Attack: "SignFlip()",
    Exchange: "AllToAll()",
    Partition: "IID()",
    Anytime: "Anytime(0.1)",
}
