"""One optimizer's way from its workers' gradients to ``.grad``: what is remembered, laid out and opened for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_byz.exchange import Exchange, Placement, Wire
from lightning_byz.flat import Layout
from lightning_byz.memory import Memory, Sliced
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.round import Round, Sent, Turn

Named = Sequence[tuple[str, Tensor]]
Gradients = Sequence[Tensor | None]


class Aggregation:
    """The rounds of one optimizer. Whoever trains lets each local worker's gradients be :meth:`collect`-ed, then steps.

    Args:
        round: What a step is.
        exchange: How messages reach the rules.
        placement: Which workers live here.
        device: Where their gradients live.

    """

    def __init__(self, round: Round, exchange: Exchange, placement: Placement, *, device: torch.device) -> None:
        self.round = round
        self.memory = Memory()
        self._exchange = exchange
        self._placement = placement
        self._device = device
        self._parameters: list[Tensor] = []
        self._before: Memory | None = None
        self._opened: tuple[Layout, Wire, dict[int, list[tuple[Tensor, list[Tensor]]]]] | None = None
        self._written: list[tuple[Tensor, list[bool]]] = []

    @property
    def opened(self) -> bool:
        """Whether there is a layout: it comes with the first step, or from a file."""
        return self._opened is not None

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in the vectors of this optimizer."""
        assert self._opened is not None
        return self._opened[0]

    def turns(self, position: tuple[int, ...]) -> Sequence[Turn]:
        """Return the turns that this rank's workers take at a position of the training."""
        self._written = []
        return self.round.turns(self.memory, self._placement, position)

    def fit(self, named: Named) -> None:
        """Make room for these parameters; where others were trained before, carry what is remembered over by name.

        To be called before the first step, and when the trained parameters have changed; by every rank.
        """
        self._parameters, layout = [parameter for _, parameter in named], Layout.of(named)
        if self._opened is None:
            self._open(layout)
            return
        known, wire, _ = self._opened
        self._before = None
        if known == layout:
            return
        start, rules = self._flat([parameter.detach() for parameter in self._parameters], layout), self.memory.rules
        rules = {stage: own for stage, own in rules.items() if self.round.wire_of(stage, wire) is wire}
        memory = replace(self.memory, rules=rules)  # messages of other parameters say nothing any more
        self._open(layout)
        moved = memory.map(
            lambda vector: vector,
            lambda row: self._cut(layout.realign(wire.assemble(row, out=row.new_empty(known.total)), known)),
            self._wire.slice,
            lambda point: layout.realign(point, known, start=start),
        )
        fresh = torch.empty_like(start)
        workers = {
            worker: self.round.realigned(
                own, lambda vector, fill: layout.realign(vector, known, start=fresh.fill_(fill))
            )
            for worker, own in memory.workers.items()
        }
        rules = {stage: self._as_rows(stage, own, known) for stage, own in moved.rules.items()}
        self.memory = self.round.relaid(replace(moved, workers=workers, rules=rules))

    @contextmanager
    def at(self, point: Tensor | None) -> Iterator[None]:
        """Have the parameters at another point (d,) for the length of the block; ``None`` where they are."""
        if point is None:
            yield
            return
        parameters, held = self._parameters, [parameter.data for parameter in self._parameters]
        for parameter, values in zip(parameters, self.layout.values(point, parameters), strict=True):
            parameter.data = values
        try:
            yield
        finally:
            for parameter, values in zip(parameters, held, strict=True):
                parameter.data = values

    def collect(self, worker: int, gradients: Gradients, earlier: Gradients | None = None) -> Sent | None:
        """Write a local worker's gradients of a batch to its row; missing ones count as zero. The tensors are not needed any more.

        ``None`` until its last batch of a step is there; between these nothing of other workers may be collected.

        Args:
            worker: Whose they are.
            gradients: Where the parameters are.
            earlier: Those of the same batch at the worker's earlier point, where the round asks for them.

        """
        assert self._opened is not None
        layout, wire, rooms = self._opened
        row, views = rooms[worker][len(self._written)]
        layout.flatten(gradients, out=views)
        self._written.append((row, [gradient is not None for gradient in gradients]))
        if len(self._written) < len(rooms[worker]):
            return None
        written, self._written = self._written, []
        flat = self.round.told(worker, [row for row, _ in written], wire)
        used = [any(flags) for flags in zip(*(flags for _, flags in written), strict=True)]
        return Sent(flat if earlier is None else [*flat, self._flat(earlier, layout)], used)

    def beside(self, sent: Sent, earlier: Gradients) -> Sent:
        """Return what was collected of a worker, with its gradients at the earlier point."""
        return Sent([*sent.gradients, self._flat(earlier, self.layout)], sent.used, sent.point)

    def step(self, sent: Mapping[int, Sent], *, scale: float | None = None, diagnose: bool = False) -> Report:
        """Aggregate what the workers sent, and write the result to ``.grad``. Every rank must call it.

        A step that is not taken leaves every ``.grad`` ``None``, or infinite where a gradient scaler has to see that gradients
        overflowed. An aggregate that the optimizer never stepped on leaves no trace in what is remembered.

        Args:
            sent: What :meth:`collect` returned for each local worker that computed.
            scale: The gradient scaler's present scale; ``None`` without a scaler.
            diagnose: Whether to measure norms and distances.

        Raises:
            TooManyFaults: If this was the third step in a row that could not be taken.

        """
        parameters, layout = self._parameters, self.layout
        self.withdraw()
        before = self.memory
        with torch.no_grad():
            if self.round.points > 1 and sent:
                here = self._flat([parameter.detach() for parameter in parameters], layout)
                sent = {worker: Sent(own.gradients, own.used, here) for worker, own in sent.items()}
            vector, self.memory, report = self.round.take(
                before, sent, self._wire, parameters=len(parameters), scale=scale, diagnose=diagnose
            )
        self._before = self.round.unstepped(before, self.memory)
        if vector is not None:
            layout.write(vector, parameters, used=report.census.used, scale=scale)
            return report
        for parameter in parameters:
            overflowed = scale is not None and not report.without_gradients
            parameter.grad = torch.full_like(parameter, float("inf")) if overflowed else None
        return report

    def stepped(self) -> None:
        """Keep what is remembered since the last aggregate: the optimizer has stepped on it."""
        self._before = None

    def withdraw(self) -> None:
        """Remember nothing of an aggregate that the optimizer has not stepped on."""
        before, self._before = self._before, None
        if before is not None:
            self.memory = before

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """Remember nothing of an aggregate that the optimizer has not stepped on, for the length of the block."""
        held = self.memory, self._before
        self.withdraw()
        try:
            yield
        finally:
            self.memory, self._before = held

    def adopt(self, memory: Memory, layout: Layout) -> None:
        """Go on from a memory whose rules' vectors and tables have all coordinates of ``layout``."""
        self._open(layout)
        self._before = None
        memory = self.round.loaded(memory, self._placement.local, self._device)
        wires = {stage: self.round.wire_of(stage, self._wire) for stage in memory.rules}
        rules = {
            stage: own.map(partial(self._cut, wire=wires[stage]), wires[stage].slice)
            for stage, own in memory.rules.items()
        }
        self.memory = replace(memory, rules=rules)

    def whole(self, vector: Tensor, stage: str) -> Tensor:
        """Return all coordinates of a vector (s,) of the rules' side. Every rank must call it."""
        wire = self.round.wire_of(stage, self._wire)
        return wire.assemble(vector, out=vector.new_empty(len(vector) if wire.slice is None else wire.slice.total))

    @property
    def _wire(self) -> Wire:
        assert self._opened is not None
        return self._opened[1]

    def _flat(self, tensors: Gradients, layout: Layout) -> Tensor:
        vector = torch.empty(layout.total, dtype=layout.dtype, device=self._device)
        layout.flatten(tensors, out=layout.views(vector))
        return vector

    def _open(self, layout: Layout) -> None:
        self.round.check(layout.shapes, sliced=self._exchange.slices and self._placement.ranks > 1)
        known = {"dtype": layout.dtype, "device": self._device, "placement": self._placement}
        wire = self.round.opened(self._exchange, layout.total, **known)
        wire.shapes = layout.shapes
        rooms = self.round.rooms(wire)
        views = {worker: [(row, layout.views(row)) for row in rows] for worker, rows in rooms.items()}
        self._opened = layout, wire, views

    def _as_rows(self, stage: str, own: Sliced, known: Layout) -> Sliced:
        """Return what rules remember, in the rows' dtype what was in theirs; both ends of a link keep their own."""
        if stage in self.round.wide:
            return own
        return own.map(lambda row: row.to(self.layout.dtype) if row.dtype == known.dtype else row, own.slice)

    def _cut(self, whole: Tensor, wire: Wire | None = None) -> Tensor:
        """Return this rank's coordinates of a whole vector, in memory of their own."""
        part = (wire or self._wire).slice
        own = whole if part is None else whole[part.start : part.stop]
        return own.to(self._device, copy=True)
