"""The chain of one step. It knows no processes: rows come in as a Stack, the aggregate goes out as a vector."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack, Sight
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.estimators.estimator import Memory
from lightning_byz.kernels import saturate
from lightning_byz.pipeline.checks import check_estimate, named, unwritten
from lightning_byz.pipeline.report import Report, diagnosed
from lightning_byz.pipeline.state import Carried, PipelineState
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import generator
from lightning_byz.stack import Stack

PATIENCE = 3
"""Steps in a row that may go untaken before the run stops."""


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
        weights: How much each worker counts; ``None`` for all alike.
        seed: Keys every draw.

    """

    workers: int
    f: float
    aggregator: Aggregator
    preaggregators: Sequence[PreAggregator] = ()
    estimator: Estimator = field(default_factory=Gradient)
    attackers: Sequence[int] = ()
    attack: Attack | None = None
    weights: Sequence[float] | None = None
    seed: int = 0

    @property
    def f_weight(self) -> float:
        """The weight that may be Byzantine."""
        return float(self.f) if self.weights is None else self.f * sum(self.weights) / self.workers

    def check(self) -> None:
        """Run the rules on a matrix of ``workers`` rows and one column, as on a first step and as on a later one.

        Raises:
            ToleranceError: If a rule cannot tolerate f.
            ValueError: If the aggregator returns something else than a finite vector, or writes to the rows.

        """
        rows, first = torch.linspace(-1.0, 1.0, self.workers).unsqueeze(1), torch.zeros(1)
        for reference in (None, first) if self.refers else (None,):
            if not bool(self.aggregate(self.entering(Stack(rows), reference), step=0)[0].isfinite().all()):
                raise ValueError(
                    f"{type(self.aggregator).__name__} returned values that are not finite from rows between -1 and 1."
                )
        attacking = (
            len(self.attackers) if self.weights is None else sum(self.weights[worker] for worker in self.attackers)
        )
        if attacking > self.f_weight:
            by_weight = (
                ""
                if self.weights is None
                else f" (by weight, {attacking:g} and {self.f_weight:g} of {sum(self.weights):g})"
            )
            warnings.warn(
                f"{len(self.attackers)} workers attack in this experiment and f = {self.f:g} are tolerated{by_weight}: no guarantee holds.",
                stacklevel=2,
            )

    def send(
        self, state: PipelineState, gradients: Mapping[int, Float[Tensor, " d"]]
    ) -> tuple[dict[int, Tensor], dict[int, Memory]]:
        """Return the message of each present local worker, and the memory it would leave behind."""
        rows, proposed = {}, {}
        for worker, gradient in gradients.items():
            memory = state.memories.get(worker)
            if memory is None:
                memory = self.estimator.init(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
            estimate, left = self.estimator.update(memory, gradient)
            check_estimate(type(self.estimator).__name__, estimate, left, gradient=gradient, memory=memory)
            rows[worker], proposed[worker] = estimate, {key: _apart(value, gradient) for key, value in left.items()}
        return rows, proposed

    def combine(
        self, state: PipelineState, stack: Stack, present: Bool[Tensor, " n"], *, diagnose: bool = False
    ) -> tuple[Float[Tensor, " s"] | None, Report, Carried]:
        """Return the aggregate, or ``None`` for a step that must not be taken, the report, and what the step would carry over.

        Args:
            state: The state before this step; what it carries has the coordinates of ``stack``.
            stack: The wire rows.
            present: Which workers sent anything.
            diagnose: Whether to measure norms and distances, one more pass over the rows.

        """
        accepted = stack.nonfinite() == 0
        usable = present & accepted
        stack = self.entering(stack, state.carried.reference).excluding(~present, faulty=False)
        try:
            honest = stack.sanitised()
            stack = self._attacked(honest, usable, state)
            accepted = accepted & (stack.nonfinite() == 0)
            stack = stack.sanitised()
            if not bool((stack.weights > 0).any()):
                return None, self._report(state, False, accepted, present), state.carried
            vector, coefficients = self.aggregate(stack, step=state.step)
        except (TooManyFaults, ToleranceError) as error:
            return None, replace(self._report(state, False, accepted, present), reason=str(error)), state.carried
        report = replace(
            self._report(state, True, accepted, present),
            coefficients=None if coefficients is None else coefficients.cpu(),
        )
        return (
            vector,
            diagnosed(report, stack, vector) if diagnose else report,
            self._carry(state.carried, honest, usable, vector),
        )

    def advance(
        self,
        state: PipelineState,
        proposed: Mapping[int, Memory],
        report: Report,
        carried: Carried,
        *,
        counts: bool = True,
    ) -> PipelineState:
        """Return the state after the step: of a step that was taken, the memories of accepted rows, and what it carries over.

        Args:
            state: The state before the step.
            proposed: What :meth:`send` proposed.
            report: What :meth:`combine` reported.
            carried: What it would carry over.
            counts: Whether a step that was not taken counts as a fault; not while a gradient scaler is still searching its scale.

        Raises:
            TooManyFaults: If this was the third counted step in a row that could not be taken.

        """
        if report.taken:
            adopted = {worker: memory for worker, memory in proposed.items() if bool(report.accepted[worker])}
            return PipelineState(state.step + 1, 0, {**state.memories, **adopted}, carried)
        weighty = report.present if self.weights is None else report.present & (torch.tensor(self.weights) > 0)
        faults = state.faults + (counts and bool(weighty.any()))
        if faults >= PATIENCE:
            broken = [worker for worker, usable in enumerate(report.accepted.tolist()) if not usable]
            away = [worker for worker, here in enumerate(report.present.tolist()) if not here]
            raise TooManyFaults(
                f"{PATIENCE} steps in a row could not be taken. In the last one, workers {broken} sent values that are not finite and workers {away}"
                f" sent nothing, with f = {self.f:g} of {self.workers} tolerated: {report.reason}. Look for the cause at these workers, or change f."
            )
        return replace(state, step=state.step + 1, faults=faults)

    def aggregate(self, stack: Stack, *, step: int) -> tuple[Tensor, Tensor | None]:
        """Run pre-aggregators and aggregator."""
        for place, preaggregator in enumerate(self.preaggregators):
            stack = preaggregator(
                stack, generator=generator(self.seed, "preaggregator", place, step, device=stack.vectors.device)
            )
        name, draw = (
            type(self.aggregator).__name__,
            generator(self.seed, "aggregator", step, device=stack.vectors.device),
        )
        with unwritten(name, {"stack.vectors": [stack.vectors], "stack.reference": [stack.reference]}):
            vector, coefficients = self.aggregator.explain(stack, generator=draw)
        if not isinstance(vector, Tensor) or vector.shape != stack.vectors.shape[1:] or not vector.is_floating_point():
            raise ValueError(
                f"{name} must return a floating point vector of {stack.vectors.shape[1]} coordinates, not {named(vector)}."
            )
        return vector if vector.dtype == stack.vectors.dtype else saturate(
            vector.double(), stack.vectors.dtype
        ), coefficients

    @property
    def refers(self) -> bool:
        """Whether some rule reads the last aggregate."""
        return any(rule.uses_reference for rule in (*self.preaggregators, self.aggregator))

    def entering(self, stack: Stack, reference: Tensor | None = None) -> Stack:
        """Return the stack as rules see it: with the workers' weights, f in their units, and the last aggregate if some rule reads it."""
        weights = (
            stack.weights
            if self.weights is None
            else torch.tensor(self.weights, dtype=torch.float64, device=stack.vectors.device)
        )
        shown = replace(stack, weights=weights, f=self.f_weight, reference=reference if self.refers else None)
        return shown.inspected(stack.nonfinite())

    def _attacked(self, stack: Stack, usable: Bool[Tensor, " n"], state: PipelineState) -> Stack:
        """Replace the attackers' rows."""
        attackers = [worker for worker in self.attackers if bool(usable[worker])]
        if self.attack is None or not attackers:
            return stack

        def defence(tried: Stack) -> Tensor:
            return self.aggregate(
                tried if tried.reference is not None else replace(tried, reference=stack.reference), step=state.step
            )[0]

        past = {worker: list(state.carried.past.get(worker, ())) for worker in self.attackers if self.attack.remembers}
        draw = generator(self.seed, "attack", state.step, device=stack.vectors.device)
        with unwritten(
            type(self.attack).__name__,
            {"stack.vectors": [stack.vectors], "past": [row for rows in past.values() for row in rows]},
        ):
            rows = self.attack.replace(Sight(stack, attackers, draw, defence, past, [0] * self.workers, state.step))
        expected = (len(attackers), stack.vectors.shape[1])
        if not isinstance(rows, Tensor) or tuple(rows.shape) != expected:
            raise ValueError(
                f"{type(self.attack).__name__}.replace must return {expected[0]} rows of {expected[1]} coordinates, not {named(rows)}."
            )
        vectors = stack.vectors.clone()
        vectors[attackers] = rows.to(vectors.dtype)
        return replace(stack, vectors=vectors)

    def _carry(self, carried: Carried, honest: Stack, usable: Bool[Tensor, " n"], vector: Tensor) -> Carried:
        """Return what the next step reads of this one; a worker without a usable row adds none."""
        remembers = 0 if self.attack is None else self.attack.remembers
        past = {worker: carried.past.get(worker, ()) for worker in self.attackers if remembers}
        for worker in past:
            new = [honest.vectors[worker].clone()] if bool(usable[worker]) else []
            past[worker] = (*past[worker], *new)[-remembers:]
        return Carried(vector.clone() if self.refers else None, past)

    def _report(self, state: PipelineState, taken: bool, accepted: Tensor, present: Tensor) -> Report:
        return Report(state.step, taken, accepted.cpu() | ~present.cpu(), present.cpu())


def _apart(value: Tensor, gradient: Tensor) -> Tensor:
    """Return a memory that does not live in the gradient's storage, which the next step writes over."""
    shared = value.untyped_storage().data_ptr() == gradient.untyped_storage().data_ptr()
    return value.clone() if shared else value
