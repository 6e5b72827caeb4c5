"""Robust aggregation in a plain PyTorch loop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.aggregators import Aggregator
from lightning_byz.arrivals import Arrivals, Synchronous
from lightning_byz.attacks import Attack
from lightning_byz.compressors import Compressor, Identity
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import Exchange
from lightning_byz.links import Direct, Downlink, Link
from lightning_byz.optimizers.anytime import Anytime
from lightning_byz.optimizers.around import AroundOptimizer
from lightning_byz.optimizers.beginning import begun
from lightning_byz.optimizers.plain_turns import Backward, Closure, Position
from lightning_byz.optimizers.refusals import refuse_closure
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds import Report
from lightning_byz.rounds.checkpoint import KEY


class RobustOptimizer(AroundOptimizer):
    r"""Step any torch optimizer on a robust aggregate of the workers' gradients, in a loop of your own.

    Each step, every local worker hands over its loss as a closure, and the optimizer steps on what the rules make of the gradients. It is a
    :class:`torch.optim.Optimizer` to schedulers and a GradScaler; groups, state and hooks are the wrapped optimizer's. One process has all workers;
    where torch.distributed is initialised (``torchrun``), each serves its part of them, and all start from rank 0's module.

    Draws are keyed by seed, step, call and worker: the same numbers in any number of processes. Each worker has its own buffers (batch norm's
    statistics). A step that cannot be taken changes no parameter; the third in a row raises ``TooManyFaults``.

    Args:
        optimizer: Steps on the aggregate, over parameters of the module (others are aggregated, too).
        module: What the closures evaluate, not wrapped in DistributedDataParallel.
        f: How many workers may be Byzantine, whoever they are; ``"max"`` for the largest whole number that the rules tolerate.
        aggregator: The robust rule.
        workers: Number of logical workers, at least one per process; ``None`` for one per process.
        preaggregators: Rules applied before it, in order.
        estimator: What a worker sends instead of its raw gradient.
        anytime: Keeps the module at a running average of the optimizer's iterates; ``None`` for the iterates themselves.
        attackers: Ids of the workers that attack in this experiment.
        attack: What they do.
        exchange: How rows reach the rules; ``None`` for ``Local()`` in one process and ``AllToAll()`` in several.
        arrivals: Which workers deliver at each step; other than ``Synchronous()``, rules see the last message of each: see :attr:`computing`.
        link: What a worker compresses of its messages, and how the rules rebuild them.
        compressor: What makes a message smaller.
        downlink: How the aggregate comes back: a compressor, or a ``Downlink``; ``None`` for as it is.
        weights: How much each worker counts, one number each, or under arrivals ``"counts"`` for the messages delivered; ``None`` for all alike.
        age_decay: Times which a weight goes with each step of its message's age, under arrivals; ``None`` for none.
        max_share: The largest part of the total weight that one worker may have.
        buffers: What evaluation sees of the workers' buffers: their coordinate-wise median, or their mean.
        seed: Keys every draw. A loaded state's seed goes before it; ``None`` for ``PL_GLOBAL_SEED``, else 0.
        digest_every: Steps between two comparisons of all processes' parameters, bit by bit; ``None`` for none.

    Raises:
        TypeError: For what is no optimizer, no module or no rule.
        ValueError: For what no run can use, and a module that mixes gradients by itself.
        ToleranceError: If a rule cannot tolerate ``f``.

    Example:
        >>> import torch
        >>> from lightning_byz.aggregators import CoordinateMedian
        >>> module = torch.nn.Linear(1, 1, bias=False)
        >>> _ = module.weight.data.fill_(1.0)
        >>> robust = RobustOptimizer(torch.optim.SGD(module.parameters(), lr=1.0), module, workers=3, f=1, aggregator=CoordinateMedian())
        >>> for worker, slope in zip(robust.local, [0.25, 0.5, -1e9]):
        ...     loss = robust.backward(worker, lambda: slope * module.weight.sum())
        >>> robust.step().status, module.weight.data
        (('arrived', 'arrived', 'arrived'), tensor([[0.7500]]))

    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        *,
        f: float | Literal["max"],
        aggregator: Aggregator,
        workers: int | None = None,
        preaggregators: Sequence[PreAggregator] = (),
        estimator: Estimator = Gradient(),  # noqa: B008 - frozen
        anytime: Anytime | None = None,
        attackers: Sequence[int] = (),
        attack: Attack | None = None,
        exchange: Exchange | None = None,
        arrivals: Arrivals = Synchronous(),  # noqa: B008 - frozen
        link: Link = Direct(),  # noqa: B008 - frozen
        compressor: Compressor = Identity(),  # noqa: B008 - frozen
        downlink: Compressor | Downlink | None = None,
        weights: Sequence[float | int] | Literal["counts"] | None = None,
        age_decay: float | None = None,
        max_share: float | None = None,
        buffers: Literal["median", "mean"] = "median",
        seed: int | None = None,
        digest_every: int | None = 50,
    ) -> None:
        if isinstance(optimizer, RobustOptimizer):
            raise ValueError(
                "RobustOptimizer got a RobustOptimizer: give it the optimizer that steps, .optimizer of it."
            )
        self._run = begun(
            optimizer,
            module,
            f=f,
            aggregator=aggregator,
            workers=workers,
            preaggregators=preaggregators,
            estimator=estimator,
            anytime=anytime,
            attackers=attackers,
            attack=attack,
            exchange=exchange,
            arrivals=arrivals,
            link=link,
            compressor=compressor,
            downlink=downlink,
            weights=weights,
            age_decay=age_decay,
            max_share=max_share,
            buffers=buffers,
            seed=seed,
            digest_every=digest_every,
        )

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that steps."""
        return self._run.optimizer

    @property
    def stepping(self) -> Optimizer:
        """The optimizer that steps."""
        return self._run.optimizer

    @property
    def local(self) -> range:
        """The workers of this process."""
        return self._run.placement.local

    @property
    def computing(self) -> Sequence[int]:
        """The workers of this process that compute at the present step: all of them, unless ``arrivals`` says less; under it often none.

        Such a worker is to call :meth:`backward` before the step; of another one a call does nothing. One that does not call has nothing to deliver
        when it is due next: it is absent then, its last message goes on counting, and it computes again at the step after.
        """
        return self._run.computing

    @property
    def f(self) -> float:
        """How many workers may be Byzantine."""
        return self._run.round.defence.f

    @property
    def report(self) -> Report | None:
        """What the last step did with each worker."""
        return self._run.report

    def backward(
        self, worker: int, closure: Closure, *, backward: Backward = Tensor.backward, position: Position = None
    ) -> Tensor | None:
        """Compute a local worker's gradients on one batch; several calls before a step add up, and are refused under ``arrivals``.

        Args:
            worker: Whose batch it is.
            closure: Returns the loss, scaled if a GradScaler is used, or ``None``: then this call sends nothing. It is called once; under an
                estimator with two points twice, the first time unseen, in the same random streams: it must not change its batch, and whatever it
                writes outside the module is written twice.
            backward: The backward pass, such as ``fabric.backward``.
            position: Names the draws of this call, such as ``(epoch, batch index)``, which are the names that ``RobustStrategy`` gives; ``None``
                for the number of the step and of the worker's calls in it.

        Returns:
            What the closure returned, detached; under an estimator with two points the second time. ``None``, without a call of the closure, for a
            worker that does not compute at this step under ``arrivals``.

        Raises:
            ValueError: For a worker of another process, and under ``arrivals`` for one that has made its message of this step.

        """
        return self._run.backward(worker, closure, backward, position)

    def poisoned(self, worker: int, batch: Any, *, position: Position = None) -> Any:
        """Return what an attacker makes of its next batch, the batch itself for others; before :meth:`backward`, at the same position."""
        return self._run.poisoned(worker, batch, position)

    def aggregate(self, *, diagnose: bool = False) -> Report:
        """Write the aggregate to ``.grad``, for those who look at it before the step. Every process must call it.

        Workers without a call of :meth:`backward` since the last step are absent; under ``arrivals`` those that are due and have no message waiting.
        A second call before the step changes nothing.

        Args:
            diagnose: Whether the report carries norms and distances.

        Raises:
            TooManyFaults: If this was the third step in a row that could not be taken.

        """
        return self._run.aggregate(diagnose=diagnose)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Have what all workers' buffers have in common in the module, to evaluate or to save it. Every process must call it."""
        self._run.show_consensus()
        yield

    def step(self, closure: None = None) -> Report:  # type: ignore[override]
        """Aggregate, unless that was done, and step the optimizer; it is left alone where the step cannot be taken. Every process must call it."""
        refuse_closure(closure)
        return self._run.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what workers have computed since the last step, and an aggregate without a step on it.

        Under ``arrivals``, messages that wait from earlier steps stay, and those that were delivered for a dropped aggregate are delivered.
        """
        self._run.forget()
        self._run.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and everything the workers remember. Every process must call it; rank 0's is whole.

        A plain optimizer of the same kind loads it as its own.
        """
        return {**self._run.optimizer.state_dict(), KEY: self._run.memories()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, on any number of processes, each of which loads rank 0's; before or after the module.

        Raises:
            ValueError: If it was saved of another number of workers, or of another estimator.

        """
        own = {key: value for key, value in state_dict.items() if key != KEY}
        self._run.restore(state_dict.get(KEY))
        self._run.optimizer.load_state_dict(own)

    def asked(self) -> Optimizer:
        """Aggregate, unless that was done, as a GradScaler is about to look at the gradients."""
        self._run.aggregate()
        self._run.show_scalers()
        return self._run.optimizer
