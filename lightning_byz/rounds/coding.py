"""What goes with a code, and what of a run cannot be right under one."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_byz.aggregators import Aggregator, Mean
from lightning_byz.arrivals import Synchronous
from lightning_byz.codes import Code
from lightning_byz.compressors import Identity
from lightning_byz.estimators import Estimator
from lightning_byz.links import Direct

DEALT = "dealt"
"""Under what a file says :func:`dealt`; runs without a code say nothing of it."""


def rules_under(code: object, f: Any, aggregator: Aggregator | None) -> tuple[Any, Any]:
    """Return ``f`` and aggregator as users give them, or what they are under a code: its ``s`` and the mean.

    Raises:
        TypeError: If ``code`` is no code.
        ValueError: If one of them is missing without a code, or does not go with it.

    """
    if code is None:
        if f is None:
            raise ValueError(
                "f=None: say how many workers may be Byzantine, e.g. f=2 or f='max', or give a code, such as Solon(s=2, compression=4)."
            )
        if aggregator is None:
            raise ValueError(
                "aggregator=None: give a robust rule, e.g. CTMA(CoordinateMedian()), or a code, such as Solon(s=2, compression=4)."
            )
        return f, aggregator
    if not isinstance(code, Code):
        given = f"the class {code.__name__}" if isinstance(code, type) else repr(code)
        raise TypeError(f"code={given}: give an instance of a Code, e.g. Solon(s=1, compression=2).")
    if aggregator is not None:
        given = f"the class {aggregator.__name__}" if isinstance(aggregator, type) else repr(aggregator)
        raise ValueError(
            f"aggregator={given} has nothing to do with {code}: a code leaves liars out and decodes the mean of all parts. Leave aggregator"
            " or code out."
        )
    number = isinstance(f, int | float) and not isinstance(f, bool)
    if number and f > code.s:
        raise ValueError(
            f"f={f:g}: {code} finds up to s = {code.s} liars of a group, and all Byzantine workers may be in one: give f up to {code.s}, or leave it"
            " out, or raise s."
        )
    return code.s if f is None or f == "max" else f, Mean()


def check_code(
    code: Code | None,
    estimator: Estimator,
    *,
    preaggregators: Sequence[Any],
    arrivals: Any,
    link: Any,
    compressor: Any,
    downlink: Any,
    weights: Any,
    max_share: float | None,
    local: bool,
    split: bool,
) -> None:
    """Refuse what does not go with a code; the arguments are as users give them.

    Raises:
        ValueError: For the first that does not.

    """
    if code is None:
        return
    equal = weights is None or (not isinstance(weights, str) and len(set(weights)) == 1)
    alike, shorter = (
        "has all parts count alike",
        "makes messages shorter itself, and has no row for what is made of them",
    )
    asked = [
        (
            "arrivals",
            arrivals,
            isinstance(arrivals, Synchronous),
            "decodes the rows of one step, where a row that is missing counts as a lie",
        ),
        ("link", link, type(link) is Direct, shorter),
        ("compressor", compressor, type(compressor) is Identity, shorter),
        ("downlink", downlink, downlink is None, "sends the decoded mean back as it is"),
        (
            "preaggregators",
            preaggregators,
            not preaggregators,
            "leaves liars out itself, and finds none among rows that were mixed",
        ),
        ("max_share", max_share, max_share is None, alike),
        ("weights", weights, equal, alike),
        ("data", "local", not local, "has several workers compute on the same samples"),
        ("split_batches", True, not split, "deals parts out itself, of which several workers compute the same"),
    ]
    for name, given, fits, why in asked:
        if not fits:
            raise ValueError(f"{name}={given!r} does not go with code={code}, which {why}: leave one of them out.")
    _check_estimator(code, estimator)


def check_spread(code: Code, workers: int) -> None:
    """Refuse a number of workers that a code cannot be spread over.

    Raises:
        ValueError: If it cannot.

    """
    code.check(workers)
    counts = {len(parts) for parts in code.parts(workers)}
    if len(counts) > 1:
        raise ValueError(f"{code} gives workers {min(counts)} to {max(counts)} parts: let each compute as many.")


def dealt(code: Code, workers: int) -> list[int]:
    """Return numbers in which codes differ whose workers would remember other buffers, or send other rows."""
    return [code.s, code.coordinates(2**20).coded, *(part for own in code.parts(workers) for part in own)]


def refuse_other_code(code: Code, counts: Mapping[str, Sequence[int]], *, workers: int) -> None:
    """Refuse to go on from what a run without a code, or under another one, has counted; nothing is counted before a step was taken.

    Raises:
        ValueError: If it is such a run's.

    """
    if counts and DEALT not in counts:
        raise ValueError(
            "The checkpoint is of a run without a code, in which each worker remembers for itself: resume without code=, or start a new run from the"
            " weights alone."
        )
    if counts and list(counts[DEALT]) != dealt(code, workers):
        raise ValueError(
            f"The checkpoint is of a run under another code than {code}, whose workers compute other parts or send other rows: resume with its code,"
            " or start a new run from the weights alone."
        )


def refuse_other_estimator(known: Sequence[str], estimator: Estimator, *, taken: bool) -> None:
    """Refuse what another estimator remembers of the mean, by name; nothing is remembered before a step was ``taken``.

    Raises:
        ValueError: If these are names of another.

    """
    if taken and known != (own := sorted(estimator.init(torch.zeros(1)))):
        raise ValueError(
            f"The checkpoint holds {known} of the decoded mean, and this run's estimator remembers {own}: resume with the same estimator, or start a"
            " new run from the weights alone."
        )


def described(code: Code, workers: int) -> str:
    """Return what is caught of liars and what is not, for the start-up line."""
    groups, parts = code.groups(workers), code.parts(workers)
    several, count = "s" * (len(groups) > 1), 1 + max(map(max, parts))
    spread = f"{count} part{'s' * (count > 1)} on {len(groups)} group{several} of {len(groups[0])} workers, {len(parts[0])} to each worker"
    named = f"up to {code.s} of a group who lie are named, and the step is the mean of all parts"
    return f"; {spread}: {named}; {code.s + 1} or more are refused where their rows do not fit, and not caught where they know the code and agree"


def warn_of_crowds(code: Code, workers: int, attackers: Sequence[int]) -> None:
    """Warn where more of a group attack than a code finds."""
    for group in code.groups(workers):
        if len(own := [worker for worker in attackers if worker in group]) > code.s:
            warnings.warn(
                f"workers {own} of the group {group.start} to {group.stop - 1} attack in this experiment, and {code} finds {code.s} liars of a group:"
                " no guarantee holds.",
                stacklevel=2,
            )


def _check_estimator(code: Code, estimator: Estimator) -> None:
    """Refuse what cannot be told of the mean at one rank's coordinates."""
    name = type(estimator).__name__
    instead = "give Gradient(), or WorkerMomentum() without clip, which is taken of the decoded mean then"
    if estimator.points > 1:
        raise ValueError(
            f"estimator={name}(...) asks for a second gradient at each worker's own point, and {code} has one row for both: {instead}."
        )
    memory = estimator.init(torch.zeros(2))
    if not all(isinstance(value, torch.Tensor) and value.shape == (2,) for value in memory.values()):
        raise ValueError(
            f"estimator={name}(...) remembers numbers of its worker, and under {code} it is taken of the mean: {instead}."
        )
    if "coordinates" in estimator.exceptions or _mixes(estimator):
        raise ValueError(
            f"estimator={estimator!r} mixes coordinates, and under {code} each rank decodes a slice of them: {instead}."
        )


def _mixes(estimator: Estimator) -> bool:
    """Whether an estimate of the first half of some coordinates is another than that half of an estimate of all."""
    gradients = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    told = []
    for width in (8, 4):
        memory, estimate = estimator.init(torch.zeros(width)), torch.zeros(width)
        for count, gradient in enumerate(gradients[:, :width].clone()):
            estimate, memory = estimator.update(memory, [gradient], count=count)
        told.append(estimate[:4])
    return not torch.allclose(*told)
