"""What a run is compared by, beside the module's own hyperparameters."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl

from lightning_byz.strategies import AsyncRobustStrategy, RobustStrategy
from lightning_byz.strategies.inside_lightning import logged_hyperparameters

VERSIONS = ("lightning-byz", "lightning", "torch")


def hyperparameters(strategy: RobustStrategy | AsyncRobustStrategy) -> dict[str, Any]:
    """Return rules or code, f, workers, attack, exchange, seed and versions of a fit that is set up, as numbers and text."""
    told = {
        "aggregator": _named(strategy.aggregator),
        "preaggregators": _listed(map(_named, strategy.preaggregators)),
        "estimator": _named(strategy.estimator),
        "anytime": "none" if strategy.anytime is None else _named(strategy.anytime),
        "f": strategy.f,
        "workers": strategy.workers,
        "weights": "equal" if strategy.weights is None else str(strategy.weights),
        "attack": "none" if strategy.attack is None else _named(strategy.attack),
        "attackers": _listed(strategy.attackers if strategy.attack is not None else ()),
        "exchange": _named(strategy.exchange_in_use),
        "partition": _named(strategy.partition),
        "seed": int(strategy.seed),
        **{f"version/{name}": _version(name) for name in VERSIONS},
    }
    if not strategy.plan.in_lock_step:
        told |= {"arrivals": _named(strategy.arrivals), "age_decay": strategy.age_decay or "none"}
    if not strategy.plan.channel().plain:
        told |= {"link": _named(strategy.link), "compressor": _named(strategy.compressor)}
    if strategy.code is not None:
        told["code"] = _named(strategy.code)
    if strategy.downlink is not None:
        told["downlink"] = _named(strategy.downlink)
    return {f"lightning_byz/{name}": value for name, value in told.items()}


def log_hyperparameters(trainer: pl.Trainer, strategy: RobustStrategy | AsyncRobustStrategy) -> None:
    """Give every logger the run's hyperparameters, with those that Lightning is about to log: TensorBoard shows the first it is given."""
    for logger in trainer.loggers:
        logger.log_hyperparams({**logged_hyperparameters(trainer), **hyperparameters(strategy)})


def _named(stage: object) -> str:
    """Return how a stage was made, or its class where that is not told."""
    return type(stage).__name__ if " object at 0x" in repr(stage) else repr(stage)


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) or "none"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout on the path
        return "not installed"
