"""The chain of one step, and its state. It knows no processes: rows come in as a Stack, the aggregate goes out as a vector."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.estimators.estimator import Memory
from lightning_byz.kernels import saturate
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import generator
from lightning_byz.stack import Stack

PATIENCE = 3
"""Steps in a row that may go untaken before the run stops."""


@dataclass(frozen=True)
class PipelineState:
    """What the chain remembers between steps, as a value.

    Args:
        step: Number of steps so far, taken or not; keys the draws of attacks and rules.
        faults: Number of steps in a row that were not taken because too much weight was broken.
        memories: The estimator's memory per local worker.

    """

    step: int = 0
    faults: int = 0
    memories: Mapping[int, Memory] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Report:
    """What one step did with each worker, on the CPU.

    Args:
        step: Number of the step, from 0.
        taken: Whether the optimizer got an aggregate.
        accepted: Whether the worker's row was usable.
        present: Whether the worker sent anything; a ``training_step`` that returns ``None`` is absence, not a fault.
        norms: Euclidean norm of the row that the rules saw, NaN for rows not accepted; ``None`` unless diagnosing.
        distances: Euclidean distance of that row from the aggregate, likewise.
        coefficients: Share of the row in the aggregate; ``None`` where the rule is no weighted sum of rows.
        reason: Why the step was not taken.
        received: Elements this rank received from others.
        exchange_seconds: Time this rank spent in the exchange, waiting for others included.
        rule_seconds: Time this rank spent in attack and rules.

    """

    step: int
    taken: bool
    accepted: Bool[Tensor, " n"]
    present: Bool[Tensor, " n"]
    norms: Float64[Tensor, " n"] | None = None
    distances: Float64[Tensor, " n"] | None = None
    coefficients: Float64[Tensor, " n"] | None = None
    reason: str = ""
    received: int = 0
    exchange_seconds: float = 0.0
    rule_seconds: float = 0.0

    @property
    def left_out(self) -> Bool[Tensor, " n"]:
        """Whether the worker was present and had no share in the aggregate."""
        unused = ~self.accepted if self.coefficients is None else ~self.accepted | (self.coefficients == 0)
        return self.present & unused


@dataclass(frozen=True)
class Pipeline:
    """Estimator, attack, pre-aggregators and aggregator of one run.

    Args:
        workers: Number of logical workers, n.
        f: How many of them may be Byzantine, in heads.
        aggregator: The robust rule.
        preaggregators: Rules applied before it, in order.
        estimator: What a worker sends instead of its raw gradient.
        attackers: Ids of the workers that attack in this experiment.
        attack: What they send.
        seed: Keys every draw.

    """

    workers: int
    f: float
    aggregator: Aggregator
    preaggregators: Sequence[PreAggregator] = ()
    estimator: Estimator = field(default_factory=Gradient)
    attackers: Sequence[int] = ()
    attack: Attack | None = None
    seed: int = 0

    def check(self) -> None:
        """Run the rules on a matrix of ``workers`` rows and one column.

        Raises:
            ToleranceError: If a rule cannot tolerate f.
            ValueError: If the aggregator returns something else than a finite vector, or writes to the rows.

        """
        rows = torch.linspace(-1.0, 1.0, self.workers).unsqueeze(1)
        if not bool(self.aggregate(Stack(rows, f=self.f), step=0)[0].isfinite().all()):
            raise ValueError(f"{type(self.aggregator).__name__} returned values that are not finite from rows between -1 and 1.")
        if len(self.attackers) > self.f:
            warnings.warn(
                f"{len(self.attackers)} workers attack in this experiment and f = {self.f:g} are tolerated: no guarantee holds.", stacklevel=2
            )

    def send(self, state: PipelineState, gradients: Mapping[int, Float[Tensor, " d"]]) -> tuple[dict[int, Tensor], dict[int, Memory]]:
        """Return the message of each present local worker, and the memory it would leave behind."""
        rows, proposed = {}, {}
        for worker, gradient in gradients.items():
            memory = state.memories.get(worker)
            if memory is None:
                memory = self.estimator.init(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
            estimate, left = self.estimator.update(memory, gradient)
            self._check_estimate(estimate, left, gradient, memory)
            rows[worker], proposed[worker] = estimate, {key: _apart(value, gradient) for key, value in left.items()}
        return rows, proposed

    def combine(
        self, state: PipelineState, stack: Stack, present: Bool[Tensor, " n"], *, diagnose: bool = False
    ) -> tuple[Float[Tensor, " s"] | None, Report]:
        """Return the aggregate, or ``None`` for a step that must not be taken, and the report.

        Args:
            state: The state before this step.
            stack: The wire rows.
            present: Which workers sent anything.
            diagnose: Whether to measure norms and distances, one more pass over the rows.

        """
        accepted = stack.nonfinite() == 0
        stack = stack.excluding(~present, faulty=False)
        try:
            stack = self._attacked(stack.sanitised(), present & accepted, state.step)
            accepted = accepted & (stack.nonfinite() == 0)
            stack = stack.sanitised()
            if not bool((present & accepted).any()):
                return None, self._report(state, False, accepted, present)
            vector, coefficients = self.aggregate(stack, step=state.step)
        except (TooManyFaults, ToleranceError) as error:
            return None, replace(self._report(state, False, accepted, present), reason=str(error))
        report = self._report(state, True, accepted, present)
        if diagnose:
            unusable = ~(present & accepted)
            norms, distances = stack.squared_norms().sqrt(), stack.squared_distances_to(vector).sqrt()
            report = replace(report, norms=_blank(norms, unusable), distances=_blank(distances, unusable))
        return vector, replace(report, coefficients=None if coefficients is None else coefficients.cpu())

    def advance(self, state: PipelineState, proposed: Mapping[int, Memory], report: Report, *, counts: bool = True) -> PipelineState:
        """Return the state after the step: memories are adopted only from accepted rows of a step that was taken.

        Args:
            state: The state before the step.
            proposed: What :meth:`send` proposed.
            report: What :meth:`combine` reported.
            counts: Whether a step that was not taken counts as a fault; not while a gradient scaler is still searching its scale.

        Raises:
            TooManyFaults: If this was the third counted step in a row that could not be taken.

        """
        if report.taken:
            adopted = {worker: memory for worker, memory in proposed.items() if bool(report.accepted[worker])}
            return PipelineState(state.step + 1, 0, {**state.memories, **adopted})
        absent = not bool(report.present.any())
        faults = state.faults + (counts and not absent)
        if faults >= PATIENCE:
            broken = [worker for worker, usable in enumerate(report.accepted.tolist()) if not usable]
            away = [worker for worker, here in enumerate(report.present.tolist()) if not here]
            raise TooManyFaults(
                f"{PATIENCE} steps in a row could not be taken. In the last one, workers {broken} sent values that are not finite and workers {away}"
                f" sent nothing, with f = {self.f:g} of {self.workers} tolerated: {report.reason}. Look for the cause at these workers, or change f."
            )
        return replace(state, step=state.step + 1, faults=faults)

    def _attacked(self, stack: Stack, usable: Bool[Tensor, " n"], step: int) -> Stack:
        """Replace the attackers' rows."""
        attackers = [worker for worker in self.attackers if bool(usable[worker])]
        if self.attack is None or not attackers:
            return stack
        draw = generator(self.seed, "attack", step, device=stack.vectors.device)
        rows = self.attack.replace(stack, attackers, generator=draw, defence=lambda tried: self.aggregate(tried, step=step)[0])
        expected = (len(attackers), stack.vectors.shape[1])
        if not isinstance(rows, Tensor) or tuple(rows.shape) != expected:
            raise ValueError(f"{type(self.attack).__name__}.replace must return {expected[0]} rows of {expected[1]} coordinates, not {_named(rows)}.")
        vectors = stack.vectors.clone()
        vectors[attackers] = rows.to(vectors.dtype)
        return replace(stack, vectors=vectors)

    def aggregate(self, stack: Stack, *, step: int) -> tuple[Tensor, Tensor | None]:
        """Run pre-aggregators and aggregator."""
        for place, preaggregator in enumerate(self.preaggregators):
            stack = preaggregator(stack, generator=generator(self.seed, "preaggregator", place, step, device=stack.vectors.device))
        written, name = stack.vectors._version, type(self.aggregator).__name__
        draw = generator(self.seed, "aggregator", step, device=stack.vectors.device)
        vector, coefficients = self.aggregator.explain(stack, generator=draw)
        if not isinstance(vector, Tensor) or vector.shape != stack.vectors.shape[1:] or not vector.is_floating_point():
            raise ValueError(f"{name} must return a floating point vector of {stack.vectors.shape[1]} coordinates, not {_named(vector)}.")
        if stack.vectors._version != written:
            raise ValueError(f"{name} wrote to stack.vectors, which others read: work on a copy.")
        return vector if vector.dtype == stack.vectors.dtype else saturate(vector.double(), stack.vectors.dtype), coefficients

    def _check_estimate(self, estimate: Tensor, left: Memory, gradient: Tensor, memory: Memory) -> None:
        """Refuse a message or a memory that cannot travel or be saved."""
        name = type(self.estimator).__name__
        if estimate.shape != gradient.shape or estimate.dtype != gradient.dtype:
            raise ValueError(f"{name}.update must return an estimate of {gradient.numel()} {gradient.dtype} coordinates, not {_named(estimate)}.")
        if {key: (value.shape, value.dtype) for key, value in left.items()} != {key: (value.shape, value.dtype) for key, value in memory.items()}:
            raise ValueError(
                f"{name}.update returned the memory { ({key: _named(value) for key, value in left.items()}) }, and {name}.init declares"
                f" { ({key: _named(value) for key, value in memory.items()}) }: return the same names, shapes and dtypes."
            )

    def _report(self, state: PipelineState, taken: bool, accepted: Tensor, present: Tensor) -> Report:
        return Report(state.step, taken, accepted.cpu() | ~present.cpu(), present.cpu())


def _blank(values: Tensor, where: Tensor) -> Tensor:
    """Return values on the CPU with NaN where nothing was measured."""
    return values.masked_fill(where.to(values.device), float("nan")).cpu()


def _apart(value: Tensor, gradient: Tensor) -> Tensor:
    """Return a memory that does not live in the gradient's storage, which the next step writes over."""
    shared = value.untyped_storage().data_ptr() == gradient.untyped_storage().data_ptr()
    return value.clone() if shared else value


def _named(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
