"""One aggregated step per optimizer: gradients of the local workers in, ``.grad`` of the parameters out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from lightning_byz.exchange import Delivery, Exchange, Placement
from lightning_byz.flat import Layout
from lightning_byz.pipeline import Carried, Pipeline, PipelineState, Report
from lightning_byz.stack import Slice, Stack

Named = Sequence[tuple[str, Tensor]]
Gradients = Sequence[Tensor | None]


class Aggregation:
    """Carries gradients through pipeline and exchange, and keeps the pipeline's state per optimizer.

    Carried vectors are whole until the first step cuts them to this rank's slice.

    Args:
        pipeline: The chain of rules.
        exchange: How rows reach the rules.
        placement: Which workers live here.
        device: Where their gradients live.

    """

    def __init__(self, pipeline: Pipeline, exchange: Exchange, placement: Placement, *, device: torch.device) -> None:
        self.pipeline = pipeline
        self.exchange = exchange
        self.placement = placement
        self.device = device
        self.states: dict[int, PipelineState] = {}
        self.layouts: dict[int, Layout] = {}
        self._rows: dict[int, Tensor] = {}
        self._slices: dict[int, Slice] = {}

    def step(
        self,
        index: int,
        named: Named,
        gradients: Mapping[int, Gradients | None],
        *,
        scale: float | None = None,
        diagnose: bool = False,
    ) -> Report:
        """Aggregate the local workers' gradients and write the result to ``.grad``.

        A step that is not taken leaves every ``.grad`` ``None``, or infinite where a gradient scaler has to see that gradients overflowed.

        Args:
            index: Which optimizer.
            named: Its parameters, with names.
            gradients: Per local worker its gradients in the order of ``named``; ``None`` for a worker that sent nothing.
            scale: The gradient scaler's present scale; ``None`` without a scaler.
            diagnose: Whether to measure norms and distances.

        Raises:
            TooManyFaults: If this was the third step in a row that could not be taken.

        """
        state, layout = self._prepare(index, named)
        rows = self._rows[index]
        by_worker = dict(zip(self.placement.local, rows, strict=True))
        for worker, row in by_worker.items():
            layout.flatten(gradients[worker] or [None] * len(named), out=row, scale=1.0 / (scale or 1.0))
        messages, proposed = self.pipeline.send(
            state, {worker: row for worker, row in by_worker.items() if gradients[worker] is not None}
        )
        for worker, message in messages.items():
            if message is not by_worker[worker]:
                by_worker[worker].copy_(message)
        started = perf_counter()
        delivery = self.exchange.scatter(
            rows, self._notes(gradients, len(named), rows.device), placement=self.placement, f=self.pipeline.f
        )
        arrived = perf_counter()
        present, used = (
            delivery.notes[: self.placement.workers] > 0,
            (delivery.notes[self.placement.workers :] > 0).tolist(),
        )
        state = self._cut(index, state, delivery.stack.slice)
        vector, report, carried = self.pipeline.combine(state, delivery.stack, present, diagnose=diagnose)
        combined = perf_counter()
        received = delivery.received + self._write(
            vector, delivery, named, layout, used, scale=scale, anyone=bool(report.present.any())
        )
        report = replace(
            report,
            received=received,
            rule_seconds=combined - arrived,
            exchange_seconds=perf_counter() - combined + arrived - started,
        )
        self.states[index] = self.pipeline.advance(
            state, proposed, report, carried, counts=scale is None or scale <= 1.0
        )
        return report

    def whole(self, index: int) -> Carried:
        """Return what the rules' side carries for an optimizer, with all coordinates. Every rank must call it."""
        carried, part = self.states[index].carried, self._slices.get(index)
        if part is None:
            return carried
        return carried.map(lambda vector: self.exchange.gather(vector, Stack(vector[None], slice=part))[0].clone())

    def adopt(self, index: int, state: PipelineState, layout: Layout) -> None:
        """Go on from ``state``, whose carried vectors are whole."""
        self.states[index], self.layouts[index] = state, layout
        self._slices.pop(index, None)

    def _cut(self, index: int, state: PipelineState, part: Slice | None) -> PipelineState:
        """Keep of whole carried vectors the slice that the rows of this rank have."""
        if part is None or index in self._slices:
            return state
        self._slices[index] = part
        self.states[index] = replace(
            state, carried=state.carried.map(lambda vector: vector[part.start : part.stop].clone())
        )
        return self.states[index]

    def _prepare(self, index: int, named: Named) -> tuple[PipelineState, Layout]:
        """Return state and layout; when the trained parameters have changed, carry memories over by name."""
        state, known = self.states.get(index, PipelineState()), self.layouts.get(index)
        layout = Layout.of(named)
        if known is not None and known != layout:
            memories = {
                worker: {key: layout.realign(value, known) for key, value in memory.items()}
                for worker, memory in state.memories.items()
            }
            whole = self.whole(index).map(lambda vector: layout.realign(vector, known).to(layout.dtype))
            state = replace(state, memories=memories, carried=whole)
            self._slices.pop(index, None)
        if known != layout or index not in self._rows:
            self._rows[index] = torch.empty(
                len(self.placement.local), layout.total, dtype=layout.dtype, device=self.device
            )
        self.layouts[index] = layout
        return state, layout

    def _notes(self, gradients: Mapping[int, Gradients | None], parameters: int, device: torch.device) -> Tensor:
        """Return who of the local workers is present, and how many of them used each parameter."""
        notes = torch.zeros(self.placement.workers + parameters, dtype=torch.int64)
        for worker, values in gradients.items():
            if values is not None:
                notes[worker] = 1
                notes[self.placement.workers :] += torch.tensor(
                    [value is not None for value in values], dtype=torch.int64
                )
        return notes.to(device)

    def _write(
        self,
        vector: Tensor | None,
        delivery: Delivery,
        named: Named,
        layout: Layout,
        used: Sequence[bool],
        *,
        scale: float | None,
        anyone: bool,
    ) -> int:
        """Write the aggregate to the parameters; return how many elements came from other ranks."""
        parameters = [parameter for _, parameter in named]
        if vector is None:
            for parameter in parameters:
                parameter.grad = None if scale is None or not anyone else torch.full_like(parameter, float("inf"))
            return 0
        whole, received = self.exchange.gather(vector, delivery.stack)
        if not bool(torch.stack(torch.aminmax(whole)).isfinite().all()):
            raise RuntimeError(
                f"{type(self.pipeline.aggregator).__name__} returned values that are not finite from rows that all are."
            )
        layout.write(whole, parameters, used=used, scale=scale or 1.0)
        return received
