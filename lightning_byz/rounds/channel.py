"""The way of messages to the rules through a link and a compressor, and that of attackers' rows, which obey the same format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.compressors import Compressor, Coordinates, Entries, Identity
from lightning_byz.exchange import Wire
from lightning_byz.kernels import unusable
from lightning_byz.links import Direct, Downlink, Link
from lightning_byz.memory import Memory, Vectors
from lightning_byz.random import generator
from lightning_byz.rounds.checks import share_memory
from lightning_byz.rounds.ends import LINK_STAGE, Ends
from lightning_byz.slice import Slice
from lightning_byz.stack import Stack

Shapes = Sequence[tuple[int, ...]]
Draws = Callable[[int], torch.Generator]


class Carried(NamedTuple):
    """What a channel has brought to the rules of one rank.

    Args:
        vectors: The due workers' rows as the rules rebuild them, at this rank's coordinates; may be written to.
        facts: How many numbers of each due worker's row, or of what it has compressed, no rule can use, and after these the ranks' facts, added up.
        workers: What the worker's end of each local worker remembers if its row is accepted, by stage.
        rules: What the rules' end remembers of each due worker if its row is accepted.
        message_bytes: What a message takes on the wire, whole.

    """

    vectors: Float[Tensor, "k s"]
    facts: Int64[Tensor, " j"]
    workers: Mapping[int, Mapping[str, Vectors]]
    rules: Mapping[int, Float[Tensor, " s"]]
    message_bytes: int


@dataclass(frozen=True)
class Channel:
    """A link and a compressor, between the workers of one optimizer and its rules.

    What an attacker sends is compressed where the rules are, at each rank's coordinates, against a state that is played for it: its own end goes on
    as if it were honest.

    Args:
        link: What is compressed of a message, and how rules rebuild it.
        compressor: What makes bytes of it.
        downlink: How the aggregate comes back; ``None`` for as it is.
        seed: Keys every draw.
        optimizer: Which optimizer's steps these are; keys every draw too.

    """

    link: Link = field(default_factory=Direct)
    compressor: Compressor = field(default_factory=Identity)
    downlink: Downlink | None = None
    seed: int = 0
    optimizer: int = 0

    @property
    def plain(self) -> bool:
        """Whether messages travel as they are."""
        return type(self.link) is Direct and type(self.compressor) is Identity

    @property
    def ends(self) -> Ends:
        """What both ends remember."""
        return Ends(self.link, None if self.downlink is None else self.downlink.link)

    def check(self, shapes: Shapes, *, sliced: bool) -> None:
        """Refuse what cannot be compressed.

        Args:
            shapes: Those of the parameters.
            sliced: Whether rules see slices of the coordinates.

        Raises:
            ValueError: If a link and its compressor do not go together, or the parameters do not suit a compressor.

        """
        _check_way(self.link, self.compressor, shapes, sliced=sliced)
        if self.downlink is not None:
            try:
                _check_way(self.downlink.link, self.downlink.compressor, shapes, sliced=sliced)
            except ValueError as error:
                raise ValueError(f"downlink: {error}") from None

    def aggregate_bytes(self, like: Float[Tensor, " d"], shapes: Shapes | None) -> int:
        """Return what the aggregate takes on its way back, whole."""
        if self.downlink is None:
            return like.nbytes
        return self.downlink.compressor.size(coordinates(shapes, None, like.numel()), like.dtype)

    def deliver(
        self,
        memory: Memory,
        due: Sequence[int],
        facts: Int64[Tensor, " k"],
        wire: Wire,
        *,
        apart: Sequence[int] = (),
    ) -> Carried:
        """Bring the messages that lie in the wire's rows, which are given away, to the rules, and add up the ranks' facts. Every rank must call it.

        Args:
            memory: What is remembered of earlier steps.
            due: Whose messages they are.
            facts: What this rank tells of them.
            wire: The exchange, open for vectors of this length.
            apart: Whose rows will be written to, so that their states are in memory of their own.

        """
        like, count = wire.row(wire.local[0]), len(due)
        if self.plain:
            delivered = wire.deliver(due, facts)
            return Carried(delivered.vectors, delivered.facts, {}, {}, like.nbytes)
        here = coordinates(wire.shapes, wire.slice, like.numel())
        whole, draws = here.whole, self._draws(memory.step, like)
        link = self.link.fitted(self.compressor, whole)
        told, entries, workers = [0] * count, {}, {}
        for place, worker in enumerate(due):
            if worker in wire.local:
                row, state = wire.row(worker), self.ends.own(memory, worker, like)
                told[place], entries[worker], workers[worker] = self._sent(link, state, row, whole, draws, worker)
        parts = wire.deliver_parts(
            due,
            lambda worker, start, stop: entries[worker].part(start, stop),
            self.compressor.size(here, like.dtype),
            varies=self.compressor.varies,
        )
        vectors, seen, rules = self._received(link, memory, due, parts, here, draws, like, apart)
        added = wire.tell(seen, torch.cat([torch.tensor(told, dtype=torch.int64), facts.cpu()]).to(seen.device))
        facts = torch.cat([added[:count] + added[count : 2 * count], added[2 * count :]])
        return Carried(vectors, facts, workers, rules, self.compressor.size(whole, like.dtype))

    def played(
        self, memory: Memory, workers: Sequence[int], rows: Stack, *, shapes: Shapes | None
    ) -> tuple[Stack, dict[int, Float[Tensor, " s"]]]:
        """Return what the rules rebuild of rows that these attackers send, and what is remembered of each if it is accepted.

        Args:
            memory: What is remembered of earlier steps.
            workers: Whose rows they are.
            rows: Usable numbers, at this rank's coordinates. Where what is compressed of a row overflows, or cannot be read, it comes back infinite.
            shapes: Those of the parameters.

        """
        vectors, step = rows.vectors, memory.step
        here = coordinates(shapes, rows.slice, vectors.shape[1])
        link, drawn = self.link.fitted(self.compressor, here.whole), self._draws(step, vectors)
        states = [self.ends.played(memory, worker, row) for worker, row in zip(workers, vectors, strict=True)]
        outgoing = [link.outgoing(state, row) for state, row in zip(states, vectors, strict=True)]
        narrow = Stack(torch.stack(outgoing).to(vectors.dtype), slice=rows.slice)
        overflown, rebuilt, left = narrow.nonfinite().tolist(), torch.empty_like(vectors), {}
        for place, (worker, state) in enumerate(zip(workers, states, strict=True)):
            values = narrow.vectors[place].zero_() if overflown[place] else narrow.vectors[place]
            part = self.compressor.encode(values, here, generator=drawn(worker)).part(here.start, here.stop)
            read = self.compressor.decode(part, here, generator=drawn(worker), out=(decoded := rebuilt[place]))
            alone = link.at_worker and not link.mirrored
            after = link.after(state, outgoing[place], decoded.clone()) if alone else None
            row, at_rules = link.receive(state, decoded)
            if (kept := _own(at_rules if after is None else after, rebuilt)) is not None:
                left[worker] = kept
            if row is not decoded:
                decoded.copy_(row)
            decoded.masked_fill_(~read | bool(overflown[place]), torch.inf)
        return Stack(rebuilt, slice=rows.slice), left

    def _sent(
        self, link: Link, state: Tensor | None, message: Tensor, whole: Coordinates, draws: Draws, worker: int
    ) -> tuple[int, Entries, Mapping[str, Vectors]]:
        """How many numbers of what is compressed no rule can use, what travels, and what the worker's end remembers of it."""
        outgoing = link.outgoing(state, message)
        narrow = outgoing.to(message.dtype)
        if bad := int(unusable(narrow[None])):
            narrow = torch.zeros_like(narrow)
        entries = self.compressor.encode(narrow, whole, generator=draws(worker))
        if not link.at_worker:
            return bad, entries, {}
        decoded, part = torch.empty_like(narrow), entries.part(0, whole.total)
        self.compressor.decode(part, whole, generator=draws(worker), out=decoded)
        after = _own(link.after(state, outgoing, decoded), message)
        assert after is not None
        return bad, entries, {LINK_STAGE: {self.ends.name: after}}

    def _received(
        self,
        link: Link,
        memory: Memory,
        due: Sequence[int],
        parts: Mapping[int, Tensor],
        here: Coordinates,
        draws: Draws,
        like: Tensor,
        apart: Sequence[int],
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """The rows as the rules rebuild them, how many numbers of each no rule can use, and what is remembered of them."""
        rules, read = {}, []
        vectors = like.new_empty(len(due), here.stop - here.start)
        for worker, out in zip(due, vectors, strict=True):
            read.append(self.compressor.decode(parts[worker], here, generator=draws(worker), out=out))
            state = self.ends.state(memory, worker, out) if link.at_rules else None
            row, after = link.receive(state, out)
            if (kept := _own(after, vectors) if worker in apart else after) is not None:
                rules[worker] = kept
            if row is not out:
                out.copy_(row)
        return vectors, unusable(vectors) + ~torch.stack(read), rules

    def _draws(self, step: int, like: Tensor) -> Draws:
        """What gives each worker's generator; all have the same where nothing is drawn."""
        if not self.compressor.draws:
            idle = torch.Generator(device=like.device)
            return lambda worker: idle
        key, shared = (self.seed, self.optimizer, "compress", step), self.compressor.shared
        return lambda worker: generator(*key, *(() if shared else (worker,)), device=like.device)


def _check_way(link: Link, compressor: Compressor, shapes: Shapes, *, sliced: bool) -> None:
    """Refuse a link and a compressor that do not go together, or do not suit the parameters."""
    where = Coordinates(tuple(map(tuple, shapes)))
    compressor.check(where)
    link.fitted(compressor, where)
    if sliced and not compressor.splits:
        raise ValueError(
            f"compressor={compressor!r}: its messages do not split by coordinates, and each of several ranks aggregates a slice of them: give"
            " exchange=AllGather(), one rank, or another compressor."
        )


def _own(state: Tensor | None, rows: Tensor) -> Tensor | None:
    """The state in memory of its own, not the rows', which are written to."""
    return state.clone() if state is not None and share_memory(state, rows) else state


def coordinates(shapes: Shapes | None, slice: Slice | None, here: int) -> Coordinates:
    """Return where the coordinates of this rank lie, ``here`` many, in tensors of these shapes; ``None`` for one tensor."""
    total = here if slice is None else slice.total
    return Coordinates(((total,),) if shapes is None else tuple(map(tuple, shapes)), slice)
