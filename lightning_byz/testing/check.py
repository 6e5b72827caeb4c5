"""The contract of the library's rules, for rules of your own."""

from collections.abc import Sequence
from typing import Any

import torch

from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.attacks import Attack
from lightning_byz.attacks.attack import check_signature
from lightning_byz.compressors import Compressor
from lightning_byz.estimators import Estimator
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.testing.chain import Chain
from lightning_byz.testing.laws import (
    AGGREGATOR_LAWS,
    ATTACK_LAWS,
    COMPRESSOR_LAWS,
    ESTIMATOR_LAWS,
    PREAGGREGATOR_LAWS,
    Law,
)


def check_aggregator(
    rule: Aggregator, *, cases: int = 100, seed: int = 0, workers: int = 65, laws: Sequence[str] | None = None
) -> None:
    """Check that an aggregator keeps the laws that every rule of this library keeps.

    Slices of the coordinates give the bits of the whole; weights are repetitions; whatever the rows of ``f`` workers hold, the result is finite and
    within ``kappa``; order, translation and scale of the rows carry over, except for what ``rule.exceptions`` names; dtype and device come out as
    they went in, inputs are not written to, no global random state is used; and what the class says of itself is true. Takes seconds.

    Args:
        rule: An instance.
        cases: How many cases a law draws, about; laws that cost more take a part of them.
        seed: The first case. The cases of ``seed`` and ``cases`` are those of ``seed`` up to ``seed + cases - 1``, one by one.
        workers: The largest number of workers; fewer for a rule that is slow with many.
        laws: Names of the laws to check; None means all that concern the rule.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the rule and the case, and what was seen.
        TypeError: If ``rule`` is no aggregator.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.aggregators import RowAverage, TrimmedMean
        >>> check_aggregator(TrimmedMean(), cases=5)
        >>> class Loudest(RowAverage):
        ...     def coefficients(self, stack, *, generator=None):
        ...         return (stack.squared_norms() == stack.squared_norms().max()).double()
        >>> check_aggregator(Loudest(), cases=5)
        Traceback (most recent call last):
        ...
        AssertionError: Loudest breaks the law ...
    """
    require_kind(rule, Aggregator, cases)
    for law in chosen_laws(AGGREGATOR_LAWS, laws):
        law.hold(rule, cases, seed, workers)


def check_preaggregator(
    rule: PreAggregator,
    *,
    following: Aggregator | None = None,
    cases: int = 100,
    seed: int = 0,
    workers: int = 65,
    laws: Sequence[str] | None = None,
) -> None:
    """Check that a pre-aggregator, and the chain of it and an aggregator, keep the laws.

    Args:
        rule: An instance.
        following: The aggregator after it, the coordinate-wise median if none is given.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        workers: Likewise.
        laws: Likewise; there are more laws about the stack that is handed on.

    Raises:
        AssertionError: For the first case that breaks a law.
        TypeError: If ``rule`` is no pre-aggregator.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.preaggregators import NNM
        >>> check_preaggregator(NNM(), cases=5)
        >>> class Doubled(PreAggregator):
        ...     condition = "f < W / 2"
        ...     def tolerates(self, weights, f):
        ...         return 2 * f < sum(weights)
        ...     def __call__(self, stack, *, generator=None):
        ...         stack = self.admit(stack)
        ...         return Stack(2 * stack.vectors, stack.weights, stack.f)
        >>> from lightning_byz.stack import Stack
        >>> check_preaggregator(Doubled(), laws=["agreement"])
        Traceback (most recent call last):
        ...
        AssertionError: Chain(first=..., then=CoordinateMedian()) breaks the law 'agreement': ...
    """
    require_kind(rule, PreAggregator, cases)
    chosen = chosen_laws((*PREAGGREGATOR_LAWS, *AGGREGATOR_LAWS), laws)
    chain = Chain(rule, following or CoordinateMedian())
    for law in chosen:
        law.hold(rule if law in PREAGGREGATOR_LAWS else chain, cases, seed, workers)


def check_attack(
    attack: Attack,
    *,
    cases: int = 100,
    seed: int = 0,
    laws: Sequence[str] | None = None,
    batch: Any = None,
    attackers: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> None:
    """Check that an attack sends rows that it makes of its arguments alone, wherever the coordinates lie.

    Args:
        attack: An instance.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.
        batch: A batch for the attack to poison; a list of inputs and whole-number targets if none is given.
        attackers: Who attacks, for an attack that depends on it; otherwise drawn.
        dtypes: Those of the rows that the attack knows; all four if none are given.

    Raises:
        AssertionError: For the first case that breaks a law.
        TypeError: If ``attack`` is no attack, or its ``replace`` takes something else than a :class:`Sight`.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.attacks import SignFlip
        >>> check_attack(SignFlip(), cases=5)
        >>> class Noise(Attack):
        ...     def replace(self, sight):
        ...         return sight.own.normal_()
        >>> check_attack(Noise(), cases=5, laws=["attack_randomness"])
        Traceback (most recent call last):
        ...
        AssertionError: Noise breaks the law 'attack_randomness': an attack draws from its generator only
          case: ...
          seen: the global random state of torch has changed
          this case alone: laws=['attack_randomness'], cases=1, seed=0
    """
    require_kind(attack, Attack, cases)
    check_signature(attack)
    for law in chosen_laws(ATTACK_LAWS, laws):
        law.hold(attack, cases, seed, settings={"batch": batch, "attackers": attackers, "dtypes": dtypes})


def check_estimator(
    estimator: Estimator, *, cases: int = 100, seed: int = 0, laws: Sequence[str] | None = None
) -> None:
    """Check that an estimator estimates the gradient out of its arguments alone, with a memory that can be saved and moved.

    What ``init`` declares is what ``update`` returns; neither memory nor gradients are written to; equal arguments give equal bits;
    coordinates are treated alike, so that a memory follows its parameters; a power of two carries over; finite gradients give finite
    estimates; and the estimate of a gradient that stays the same becomes that gradient. ``estimator.exceptions`` names what its definition
    does not keep.

    Args:
        estimator: An instance.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the estimator and the case, and what was seen.
        TypeError: If ``estimator`` is no estimator.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.estimators import WorkerMomentum
        >>> check_estimator(WorkerMomentum(beta=0.9), cases=5)
        >>> class InPlace(WorkerMomentum):
        ...     def update(self, memory, gradients, *, count):
        ...         momentum = memory["momentum"].mul_(self.beta).add_(gradients[0], alpha=1 - self.beta)
        ...         return momentum.to(gradients[0].dtype), {"momentum": momentum}
        >>> check_estimator(InPlace(), cases=5)
        Traceback (most recent call last):
        ...
        AssertionError: InPlace(beta=0.9) breaks the law 'estimator_inputs': memory and the gradient are not written to
          case: ...
          seen: momentum after the call: ...
          this case alone: laws=['estimator_inputs'], cases=1, seed=0
    """
    require_kind(estimator, Estimator, cases)
    for law in chosen_laws(ESTIMATOR_LAWS, laws):
        law.hold(estimator, cases, seed)


def check_compressor(
    compressor: Compressor, *, cases: int = 100, seed: int = 0, laws: Sequence[str] | None = None
) -> None:
    """Check that a compressor makes bytes of its arguments alone, wherever the coordinates lie, and takes any bytes.

    Slices make the bytes of the whole, ties included; a part has the stated size; alpha and omega hold, as far as trials tell; equal draws give
    equal bytes; inputs are not written to; and whatever bytes come, ``decode`` writes finite numbers or says that they are no message.
    ``compressor.exceptions`` names what its definition does not keep.

    Args:
        compressor: An instance.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the compressor and the case, and what was seen.
        TypeError: If ``compressor`` is no compressor.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.compressors import RandomK, TopK
        >>> check_compressor(TopK(0.1), cases=5)
        >>> class Better(TopK):
        ...     def alpha(self, coordinates):
        ...         return 0.9
        >>> check_compressor(Better(0.1), laws=["compressor_contraction"])
        Traceback (most recent call last):
        ...
        AssertionError: Better(...) breaks the law 'compressor_contraction': ...
    """
    require_kind(compressor, Compressor, cases)
    for law in chosen_laws(COMPRESSOR_LAWS, laws):
        law.hold(compressor, cases, seed)


def require_kind(rule: object, kind: type, cases: int) -> None:
    """Refuse what is no stage of a kind, and no cases."""
    if not isinstance(rule, kind):
        hint = f"; give an instance, {rule.__name__}(...)" if isinstance(rule, type) else ""
        raise TypeError(f"{kind.__name__} expected, not {rule!r}{hint}")
    if cases < 1:
        raise ValueError(f"cases must be at least 1, not {cases}")


def chosen_laws(known: Sequence[Law], names: Sequence[str] | None) -> list[Law]:
    """The laws of the given names, in their own order."""
    unknown = set(names or ()) - {law.name for law in known}
    if unknown:
        raise ValueError(f"there is no law {sorted(unknown)}; the laws are {[law.name for law in known]}")
    return [law for law in known if names is None or law.name in names]
