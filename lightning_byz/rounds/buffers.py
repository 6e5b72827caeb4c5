"""Buffers (batch norm's running statistics) of logical workers that share one module."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.flat import Layout
from lightning_byz.inside_torch import buffers_of, keeps_running_statistics, version
from lightning_byz.stack import Stack

Values = dict[str, Tensor]

SMALL = 65536
"""Numbers in a buffer that is compared by value when its version has not changed."""


class WorkerBuffers:
    """Each worker's own values of the buffers that its training steps change.

    A worker finds its values in the module while it computes. They are adopted only with its row: a step that was not accepted leaves no trace.
    Evaluation and checkpoints use :meth:`consensus`.

    Args:
        module: The user's module.
        workers: The logical workers of this rank.
        rule: What makes one buffer of the workers' buffers.

    """

    def __init__(self, module: nn.Module, workers: Sequence[int], *, rule: Aggregator | None = None) -> None:
        self._module = module
        self._rule = CoordinateMedian() if rule is None else rule
        self._initial: Values = {}
        self._adopted: dict[int, Values] = {worker: {} for worker in workers}
        self._proposed: dict[int, Values] = {}
        self._changing: set[str] = set()
        self._resident: int | None = None
        self._at_work: int | None = None
        self._before: list[tuple[int, int]] = []
        self._places: list[tuple[str, nn.Module, str]] | None = None
        self._unversioned: set[str] = set()

    @property
    def some(self) -> bool:
        """Whether the module has buffers; they are listed the first time somebody asks."""
        if self._places is None:
            self._begin()
        return bool(self._places)

    @contextmanager
    def inside(self, worker: int) -> Iterator[None]:
        """Put the worker's values into the module, and note afterwards which ones its step has changed."""
        if not self.some:
            yield
            return
        if self._resident != worker and self._changing:
            self._load({name: value for name, value in self._values(worker).items() if name in self._changing})
        self._resident = self._at_work = worker
        self._look()
        try:
            yield
        finally:
            self._at_work = None
            self._propose(worker)

    def adopt(self, accepted: Sequence[bool]) -> None:
        """Adopt what the accepted workers' steps changed, forget the rest; a step that still runs has changed what it has changed so far."""
        inside = self._at_work
        if inside is not None:
            self._propose(inside)
        proposed, self._proposed = self._proposed, {}
        for worker, changed in proposed.items():
            if accepted[worker]:
                self._adopted[worker].update(changed)
            elif changed and worker == inside:
                self._load({name: self._values(worker)[name] for name in changed})
            elif changed:
                self._resident = None
        if inside is not None:
            self._look()

    def _look(self) -> None:
        """Remember how the module's buffers are now."""
        self._before = [(id(buffer), version(buffer)) for _, buffer in self._now()]

    def _propose(self, worker: int) -> None:
        """Propose what has changed since the last look."""
        changed = self._changed(worker, self._before)
        self._changing.update(changed)
        self._proposed[worker] = {**self._proposed.get(worker, {}), **changed}

    def consensus(self, exchange: Exchange, placement: Placement) -> Values:
        """Return one value of each buffer that changes: the rule's of floating ones, worker 0's of counters.

        Every rank must call it. A row that is not finite counts as absent; where no row is finite the buffers are worker 0's.
        """
        self.agree(exchange)
        own = [self._values(worker) for worker in placement.local]
        floating = [name for name in sorted(self._changing) if own[0][name].is_floating_point()]
        result = {name: exchange.broadcast(own[0][name]) for name in sorted(self._changing) if name not in floating}
        if not floating:
            return result
        layout = Layout.of((name, own[0][name]) for name in floating)
        wire = exchange.open(layout.total, dtype=layout.dtype, device=self._device, placement=placement)
        for worker, values in zip(placement.local, own, strict=True):
            layout.flatten([values[name] for name in floating], out=layout.views(wire.row(worker)))
        vectors, counts = wire.deliver(range(placement.workers), torch.zeros(0, dtype=torch.int64))
        broken = [count > 0 for count in counts.tolist()]
        if all(broken):
            return result | {name: exchange.broadcast(own[0][name]) for name in floating}
        stack = Stack(vectors, slice=wire.slice).inspected(counts).excluding(torch.tensor(broken), faulty=False)
        parts = zip(floating, layout.views(wire.assemble(self._rule(stack))), strict=True)
        return result | {name: part.to(own[0][name].dtype, copy=True) for name, part in parts}

    def agree(self, exchange: Exchange) -> None:
        """Learn which buffers change on other ranks. Every rank must call it."""
        names = sorted(name for name, _ in self._module.named_buffers())
        flags = torch.tensor([name in self._changing for name in names], dtype=torch.int64, device=self._device)
        self._changing.update(
            name for name, count in zip(names, exchange.all_reduce(flags).tolist(), strict=True) if count
        )

    def show(self, values: Values) -> None:
        """Put ``values`` into the module until a worker computes again."""
        self._load(values)
        self._resident = None

    def state(self, worker: int) -> Values:
        """Return a worker's own values of the buffers that change; call :meth:`agree` before."""
        values = self._values(worker)
        return {name: values[name] for name in sorted(self._changing)}

    def restore(self, states: Mapping[int, Values]) -> None:
        """Take over the workers' values from a checkpoint."""
        for worker in self._adopted:
            self._adopted[worker] = {name: value.to(self._device) for name, value in states[worker].items()}
            self._changing.update(states[worker])
        self._resident = None

    def _begin(self) -> None:
        """Remember the module's buffers as they are before the first training step of this rank."""
        self._places = [
            (f"{prefix}.{name}".lstrip("."), owner, name)
            for prefix, owner in self._module.named_modules()
            for name, _ in buffers_of(owner)
        ]
        self._initial = {name: owner.get_buffer(last).detach().clone() for name, owner, last in self._places}
        self._unversioned = _running_statistics(self._module)

    def _now(self) -> list[tuple[str, Tensor]]:
        """Return the module's buffers as they are."""
        return [(name, owner.get_buffer(last)) for name, owner, last in self._places or ()]

    def _changed(self, worker: int, before: list[tuple[int, int]]) -> Values:
        """Return copies of what has changed: by a new version, or, since ``.data`` counts none, by value where a buffer is small."""
        held, changed = self._values(worker), {}
        for (name, buffer), was in zip(self._now(), before, strict=True):
            if buffer.shape != self._initial[name].shape:
                raise ValueError(
                    f"The buffer '{name}' went from shape {tuple(self._initial[name].shape)} to {tuple(buffer.shape)} in a training step:"
                    " workers' buffers are compared by coordinate, so keep its shape, or hold it in a plain attribute."
                )
            if (
                was != (id(buffer), version(buffer))
                or name in self._unversioned
                or (buffer.numel() <= SMALL and not torch.equal(buffer, held[name]))
            ):
                changed[name] = buffer.detach().clone()
        return changed

    @property
    def _device(self) -> torch.device:
        return next((buffer.device for buffer in self._module.buffers()), next(self._module.parameters()).device)

    def _values(self, worker: int) -> Values:
        return {**self._initial, **self._adopted[worker], **self._proposed.get(worker, {})}

    @torch.no_grad()
    def _load(self, values: Values) -> None:
        for name, value in values.items():
            self._module.get_buffer(name).copy_(value)


def _running_statistics(module: nn.Module) -> set[str]:
    """Return the buffers that torch's normalisation layers write without counting a new version of the tensor."""
    return {
        f"{name}.{buffer}".lstrip(".")
        for name, part in module.named_modules()
        if keeps_running_statistics(part)
        for buffer, _ in buffers_of(part)
    }
