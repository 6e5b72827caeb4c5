"""What workers that go at their own pace cannot do is refused before the first step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim import Optimizer

from lightning_byz.arrivals.arrivals import check_share
from lightning_byz.rounds import arguments
from lightning_byz.rounds.trained import named, trained_by
from lightning_byz.serving.ray_engine import Ray, refuse_without_ray

NAME = "AsyncRobustStrategy"
WORDS = {
    "engine": ("processes", "ray"),
    "start_method": ("spawn", "fork", "forkserver"),
    "delay_law": ("constant", "exponential"),
}
"""What arguments that are words may be."""


def check_async_arguments(
    workers: object,
    share: object,
    age_decay: object,
    delays: object,
    *,
    numbers: Mapping[str, Any],
    words: Mapping[str, object],
) -> None:
    """Refuse arguments that no run can use.

    Args:
        workers: Number of workers.
        share: The stated part of the deliveries that may be Byzantine.
        age_decay: Times which a weight goes with each update of age.
        delays: Seconds that each worker sleeps.
        numbers: Whole numbers, and the deadline, by name.
        words: Words by name.

    """
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers={workers!r}: give the number of workers, 1 or more; each is a process.")
    check_share(NAME, share)
    if age_decay is not None and not (_number(age_decay) and 0 < age_decay <= 1):  # type: ignore[operator]
        raise ValueError(f"age_decay={age_decay!r}: give a factor above 0 and at most 1, or None.")
    for name, least in (("every", 1), ("restarts", 0), ("threads", 1)):
        if type(numbers[name]) is not int or numbers[name] < least:
            raise ValueError(f"{name}={numbers[name]!r}: give a whole number of {least} or more.")
    if not _number(numbers["deadline"]) or numbers["deadline"] <= 0:
        raise ValueError(f"deadline={numbers['deadline']!r}: give seconds above 0.")
    if delays is not None and not (
        isinstance(delays, Sequence) and len(delays) == workers and all(_number(one) and one >= 0 for one in delays)
    ):
        raise ValueError(f"delays={delays!r}: give the seconds, 0 or more, of each of the {workers} workers, or None.")
    for name, given in words.items():
        if given not in WORDS[name] and not (name == "engine" and isinstance(given, Ray)):
            raise ValueError(f"{name}={given!r}: give one of {list(WORDS[name])}.")


def check_async_run(strategy: Any, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse a module and a Trainer that cannot do with such workers."""
    arguments.check_attackers(strategy.attackers, strategy.workers)
    arguments.refuse_sparse(module)
    if strategy.engine != "processes":
        refuse_without_ray()
    if strategy.world_size > 1:
        raise ValueError(
            f"{strategy.world_size} processes for {NAME}, whose Trainer runs in one: give devices=1 and num_nodes=1, and workers= for the processes"
            " that compute."
        )
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization, which steps inside training_step, where a worker has no optimizer: use automatic"
            " optimization."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"training_step(dataloader_iter) fetches its own batches, and workers of {NAME} are given one: take a batch instead."
        )
    schedulers = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    if trainer.accumulate_grad_batches != 1 or any(max(one.scheduling.values()) > 1 for one in schedulers):
        raise ValueError(
            f"{NAME} sends one batch's gradient at a time: leave accumulate_grad_batches out, and give larger batches or every=."
        )
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        raise ValueError(
            f"Workers of {NAME} keep their loaders to the end of the run: leave reload_dataloaders_every_n_epochs out."
        )
    if getattr(strategy.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"A gradient scaler needs to hear of each gradient at once, and workers of {NAME} do not wait: use precision='bf16-mixed' or '32-true'."
        )
    if strategy.root_device.type != "cpu" and strategy.start_method == "fork" and strategy.engine == "processes":
        raise ValueError(
            f"start_method='fork' with {strategy.root_device}: a forked process cannot use it, so give start_method='spawn'."
        )


def check_trained(module: pl.LightningModule, optimizers: Sequence[Optimizer]) -> None:
    """Refuse parameters that workers would not find in their module."""
    if len(optimizers) != 1:
        raise ValueError(f"{len(optimizers)} optimizers: {NAME} takes modules with one.")
    known = dict(module.named_parameters())
    foreign = [name for name, _ in named(module, trained_by(optimizers[0])) if name not in known]
    if foreign:
        raise ValueError(
            f"The optimizer trains {foreign}, which are not parameters of {type(module).__name__}, so that workers cannot find them: make them"
            " attributes of the module."
        )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
