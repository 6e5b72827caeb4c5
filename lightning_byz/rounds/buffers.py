"""Buffers (batch norm's running statistics) of logical workers that share one module."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from zlib import crc32

import torch
from torch import Tensor, nn

from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.inside_torch import buffers_of, running_statistics, version
from lightning_byz.rounds.checks import refuse_new_shape
from lightning_byz.rounds.consensus import agreed
from lightning_byz.rounds.same import same

Values = dict[str, Tensor]
Weights = Sequence[float] | None

SMALL, UNLIMITED = 65536, 2**62
"""Numbers in a buffer that is compared by value at each step when its version has not changed, and now and then."""


class WorkerBuffers:
    """Each worker's own values of the buffers that its training steps change.

    A worker finds its values in the module while it computes. They are adopted only with its row: a step that was not accepted leaves no trace.
    What anybody writes to the module between steps, a hook, a callback or the user, belongs to everybody, and goes before what workers had.
    Evaluation and checkpoints use :meth:`consensus`.

    Args:
        module: The user's module.
        workers: The logical workers of this rank, or their seats where they get several batches at a step: a worker's number is its first one's.
        rule: What makes one buffer of the workers' buffers.

    """

    def __init__(self, module: nn.Module, workers: Sequence[int], *, rule: Aggregator | None = None) -> None:
        self._module = module
        self._rule = CoordinateMedian() if rule is None else rule
        self._initial: Values = {}
        self._adopted: dict[int, Values] = {worker: {} for worker in workers}
        self._proposed: dict[int, Values] = {}
        self._waiting: set[int] = set()
        self._changing: set[str] = set()
        self._resident: int | None = None
        self._at_work: int | None = None
        self._held: Values = {}
        self._seen: dict[str, tuple[int, int]] = {}
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
        self._share()
        if self._resident != worker and self._changing:
            self._load({name: value for name, value in self._values(worker).items() if name in self._changing})
        self._resident = self._at_work = worker
        self.look()
        try:
            yield
        finally:
            self._at_work = None
            self._propose(worker)

    def adopt(self, accepted: Sequence[bool], waiting: Container[int] = ()) -> None:
        """Adopt what the accepted workers' steps changed, forget the rest, but not of those who are waiting to be told.

        A step that still runs has changed what it has changed so far.
        """
        inside = self._at_work
        if inside is not None:
            self._propose(inside)
        proposed, self._proposed = self._proposed, {}
        self._waiting = {worker for worker in proposed if worker in waiting}
        for worker, changed in proposed.items():
            if worker in self._waiting:
                self._proposed[worker] = changed
            elif accepted[worker]:
                self._adopted[worker].update(changed)
            elif changed and worker == inside:
                self._load({name: self._values(worker)[name] for name in changed})
            elif changed:
                self._resident = None

    def drop(self, worker: int) -> None:
        """Forget what a worker's turns have changed."""
        self._proposed[worker], self._resident = {}, None

    def _share(self, *, limit: int = SMALL) -> None:
        """Give everybody what was written to the module between steps."""
        if not self.some or self._at_work is not None:
            return
        written = self._written(limit=limit)
        for name in [name for name, value in written.items() if name in self._held and same(value, self._held[name])]:
            del written[name]  # somebody has put back what was there
        for own in (*self._adopted.values(), *self._proposed.values()):
            for name in written:
                own.pop(name, None)
        self._initial.update(written)
        self._changing.update(written)
        self._note(written)

    def look(self) -> None:
        """Remember how the module's buffers are now: what was written to them before is not a worker's."""
        self._seen = {name: (id(buffer), version(buffer)) for name, buffer in self._now()}

    def _note(self, values: Values) -> None:
        """Remember that these are in the module now."""
        self._held.update(values)
        self.look()

    def _propose(self, worker: int) -> None:
        """Propose what has changed since the last look."""
        changed = self._written(self._unversioned)
        for name, value in changed.items() if len(self._adopted) > 1 else ():
            refuse_new_shape(name, self._initial[name], value)
        self._changing.update(changed)
        self._proposed[worker] = {**self._proposed.get(worker, {}), **changed}
        self._note(changed)

    def consensus(self, exchange: Exchange, placement: Placement, weights: Sequence[float] | None = None) -> Values:
        """Return one value of each buffer that changes: the rule's of floating ones, worker 0's of counters.

        Every rank must call it. Workers count by their ``weights``. A row that is not finite is left out; where none is, it is worker 0's.
        """
        self._share(limit=UNLIMITED)
        self.agree(exchange)
        own = [self.state(worker) for worker in placement.local]
        floating = [name for name in sorted(self._changing) if own[0][name].is_floating_point()]
        result = {name: exchange.broadcast(own[0][name]) for name in sorted(self._changing) if name not in floating}
        if not floating:
            return result
        values = [[one[name] for name in floating] for one in own]
        parts = agreed(values, self._rule, exchange, placement, weights, device=self._device)
        if parts is None:
            return result | {name: exchange.broadcast(own[0][name]) for name in floating}
        return result | dict(zip(floating, parts, strict=True))

    def agree(self, exchange: Exchange) -> None:
        """Learn which buffers change on other ranks. Every rank must call it.

        Raises:
            ValueError: If one has different shapes on the ranks.

        """
        shapes = {name: tuple(buffer.shape) for name, buffer in sorted(self._module.named_buffers())}
        digests = [crc32(repr(shape).encode()) % 2**20 for shape in shapes.values()]
        flags = [int(name in self._changing) for name in shapes]
        facts = torch.tensor([[1] * len(shapes), flags, digests, [one * one for one in digests]], dtype=torch.int64)
        sums = exchange.all_reduce(facts.to(self._device).view(-1)).view(facts.shape).tolist()
        for name, ranks, changing, total, squares in zip(shapes, *sums, strict=True):
            if changing and ranks * squares != total * total:  # equal only if all digests are
                raise ValueError(
                    f"The buffer '{name}' has different shapes on the ranks, {shapes[name]} on this one, and there is one module to save: let it"
                    " grow alike everywhere, or hold it in a plain attribute."
                )
            if changing:
                self._changing.add(name)

    def show(self, values: Values) -> None:
        """Put ``values`` into the module until a worker computes again."""
        self._load(values)
        self._resident = None

    def state(self, worker: int, *, waiting: bool = False) -> Values:
        """Return a worker's own values of the buffers that change, or as its ``waiting`` message leaves them; call :meth:`agree` before."""
        waits = worker in self._waiting and not waiting
        values = {**self._initial, **self._adopted[worker]} if waits else self._values(worker)
        return {name: values[name] for name in sorted(self._changing)}

    def waits(self, worker: int) -> bool:
        """Whether it is not known yet if what a worker's last step has changed will be adopted."""
        return worker in self._waiting

    def decided(self) -> "WorkerBuffers":
        """Return what has been adopted or waits, without what turns have changed of which nothing is known yet."""
        result = copy(self)
        result._proposed = {worker: self._proposed[worker] for worker in self._waiting}
        return result

    def restore(self, states: Mapping[int, Values], waiting: Mapping[int, Values]) -> None:
        """Take over the workers' values from a checkpoint, whose module is in place, and those that messages which wait would leave."""
        self._begin()
        self._waiting = {worker for worker in self._adopted if worker in waiting}
        self._proposed = {
            worker: {n: v.to(self._device) for n, v in waiting[worker].items()} for worker in self._waiting
        }
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
        self._initial = {name: buffer.detach().clone() for name, buffer in self._now()}
        self._unversioned = running_statistics(self._module)
        self._held = dict(self._initial)
        self.look()

    def _now(self) -> list[tuple[str, Tensor]]:
        """Return the module's buffers as they are; some may be ``None`` at times."""
        places = self._places or ()
        return [(name, now) for name, owner, last in places if (now := getattr(owner, last)) is not None]

    def _written(self, always: Container[str] = (), *, limit: int = SMALL) -> Values:
        """Return copies of what was written since the last look: by a new version, or, since ``.data`` counts none, by value up to ``limit``."""
        return {
            name: buffer.detach().clone()
            for name, buffer in self._now()
            if self._seen.get(name) != (id(buffer), version(buffer))
            or name in always
            or (buffer.numel() <= limit and not same(buffer, self._held[name]))
        }

    @property
    def _device(self) -> torch.device:
        return next((buffer.device for buffer in self._module.buffers()), next(self._module.parameters()).device)

    def _values(self, worker: int) -> Values:
        return {**self._initial, **self._adopted[worker], **self._proposed.get(worker, {})}

    @torch.no_grad()
    def _load(self, values: Values) -> None:
        for name, owner, last in self._places or ():
            if (value := values.get(name)) is None:
                continue
            if (present := getattr(owner, last)) is not None and present.shape == value.shape:
                present.copy_(value)
            else:
                setattr(owner, last, value.clone())
        self._note(values)
