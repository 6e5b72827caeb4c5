"""Arguments that no run can use are refused, with Lightning or without: what was given, what is allowed, what to change."""

import math
import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from lightning_byz.aggregators import Aggregator, CoordinateMedian, Mean
from lightning_byz.arrivals import Arrivals, Synchronous
from lightning_byz.attacks import Attack
from lightning_byz.attacks.attack import check_signature
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds.weighing import COUNTED

BUFFER_RULES: dict[str, Aggregator] = {"median": CoordinateMedian(), "mean": Mean()}
"""What makes one buffer of the workers' buffers, by what users call it."""


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


def idle_attack(attackers: Sequence[int], attack: Attack | None) -> str | None:
    """Return a warning where an attack is never used."""
    if attack is None or attackers:
        return None
    return f"attack={attack!r} is never used, as nobody attacks: give attackers=, the ids of those who do, or leave attack out."


def check_buffers(buffers: str) -> None:
    """Refuse what is no rule for buffers."""
    if buffers not in BUFFER_RULES:
        raise ValueError(f"buffers={buffers!r}: give one of {sorted(BUFFER_RULES)}.")


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
    aggregator: Aggregator,
    estimator: Estimator,
    *,
    attack: Attack | None,
    exchange: Exchange | None,
    preaggregators: Sequence[PreAggregator],
) -> None:
    """Refuse what is no stage of its kind; ``attack`` and ``exchange`` may be left out."""
    check_stages([("aggregator", aggregator, Aggregator), ("estimator", estimator, Estimator)])
    check_several("preaggregators", preaggregators, PreAggregator)
    check_stages(("attack", stage, Attack) for stage in [attack] if stage is not None)
    check_stages(("exchange", stage, Exchange) for stage in [exchange] if stage is not None)
    check_points(estimator)
    if attack is not None:
        check_signature(attack)


def check_arrivals(
    arrivals: object, weights: object, age_decay: object, *, local: bool = False, split: bool = False
) -> None:
    """Refuse arguments that do not go together.

    Args:
        arrivals: As users give them.
        weights: Likewise.
        age_decay: Likewise.
        local: Whether each rank has data of its own.
        split: Whether workers share the batches of a loader.

    """
    in_lock_step = isinstance(arrivals, Synchronous)
    if not isinstance(arrivals, Arrivals):
        raise TypeError(f"arrivals={arrivals!r}: give an instance of an Arrivals, e.g. RandomArrivals('squared').")
    number = isinstance(age_decay, int | float) and not isinstance(age_decay, bool) and 0 < age_decay <= 1
    if age_decay is not None and not number:
        raise ValueError(
            f"age_decay={age_decay!r}: give the factor by which a message's weight goes down with each step of its age, above 0 and at"
            " most 1, or None."
        )
    for name, given in (("weights", weights if weights in COUNTED else None), ("age_decay", age_decay)):
        if in_lock_step and given is not None:
            raise ValueError(
                f"{name}={given!r} follows from what workers deliver, which under arrivals=Synchronous() is one message a step from each: leave"
                f" {name} out, or give arrivals, such as RandomArrivals()."
            )
    if (local or split) and not in_lock_step:
        asked = "data='local'" if local else "split_batches=True"
        raise ValueError(
            f"arrivals={type(arrivals).__name__}(...) has each worker go through its own shard at its own pace, and {asked} does not allow"
            " that: leave it out, or give arrivals=Synchronous()."
        )


def several(placement: Placement) -> str:
    """Return how many workers share how many ranks, in words."""
    return f"{placement.workers} logical workers on {placement.ranks} rank{'s' * (placement.ranks > 1)}"


def refuse_sparse(module: nn.Module) -> None:
    """Refuse layers with sparse gradients."""
    sparse = [name for name, part in module.named_modules() if getattr(part, "sparse", False) is True]
    if sparse:
        raise ValueError(
            f"'{sparse[0]}' has sparse gradients (sparse=True), and rules aggregate dense vectors: give it sparse=False."
        )


def check_synchronized(module: nn.Module, placement: Placement, *, synchronized: bool = False) -> None:
    """Refuse normalisation over ranks whose workers run in turn; warn of it where each rank is a worker."""
    if not (synchronized or any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())):
        return
    if not placement.one_per_rank:
        raise ValueError(
            f"SyncBatchNorm waits for all ranks in each forward pass, and {several(placement)} run in turn: use BatchNorm or one worker per rank."
        )
    if placement.ranks > 1:
        warnings.warn(
            "SyncBatchNorm mixes the workers' activations before any robust rule sees them: a Byzantine worker can poison everyone's batch.",
            stacklevel=2,
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
        raise TypeError(f"{name}={stages!r}: give a list, e.g. [{_EXAMPLES[kind.__name__]}], which may be empty.")
    check_stages((name, stage, kind) for stage in stages)


def check_stages(stages: Iterable[tuple[str, object, type]]) -> None:
    """Refuse a stage that is not an instance of its class."""
    for name, stage, kind in stages:
        if not isinstance(stage, kind):
            given = f"the class {stage.__name__}" if isinstance(stage, type) else repr(stage)
            wanted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}, e.g. {_EXAMPLES[kind.__name__]}"
            raise TypeError(f"{name}={given}: give an instance of {wanted}.")


_EXAMPLES: dict[str, str] = {
    "Aggregator": "CoordinateMedian()",
    "PreAggregator": "NNM()",
    "Estimator": "WorkerMomentum(beta=0.9)",
    "Attack": "SignFlip()",
    "Exchange": "AllToAll()",
    "Partition": "IID()",
    "Anytime": "Anytime(0.1)",
    "Link": "EF21()",
    "Compressor": "TopK(0.05)",
    "Downlink": "Downlink(TopK(0.05), EF21())",
}
