"""The way of the aggregate back to all ranks."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.compressors import Coordinates
from lightning_byz.compressors.wire import finite
from lightning_byz.exchange import Wire
from lightning_byz.kernels import unusable
from lightning_byz.links import Downlink
from lightning_byz.memory import Memory, Sliced, Vectors
from lightning_byz.random import generator
from lightning_byz.rounds.assembling import assembled, refuse_values
from lightning_byz.rounds.channel import Channel, coordinates
from lightning_byz.rounds.ends import DOWN_STAGE, blank
from lightning_byz.slice import Slice
from lightning_byz.stack import Stack


class Returned(NamedTuple):
    """What became of an aggregate on its way.

    Args:
        whole: What all ranks step on, valid until the next step; ``None`` where a rule refused on some rank, or it overflowed.
        part: This rank's coordinates of it.
        rules: What the sending end remembers once the step is taken, by stage.
        workers: What the receiving end does, as its first local worker's.
        reason: Why there is no whole, if there is none.

    """

    whole: Float[Tensor, " d"] | None
    part: Float[Tensor, " s"] | None
    rules: Mapping[str, Sliced] = {}
    workers: Mapping[int, Mapping[str, Vectors]] = {}
    reason: str = "a rule refused this step on another rank"


OVERFLOWN = Returned(None, None, reason="the aggregate is beyond the largest finite number on its way back")


def returned(
    vector: Float[Tensor, " s"] | None,
    stack: Stack,
    wire: Wire,
    *,
    name: str,
    channel: Channel,
    memory: Memory,
) -> Returned:
    """Bring each rank's part of the aggregate to all. Every rank must call it.

    Args:
        vector: This rank's part; ``None`` where a rule refused.
        stack: What it was made of.
        wire: Brings the parts together.
        name: The rule that made it.
        channel: Says how it comes back.
        memory: What is remembered of earlier steps.

    Raises:
        RuntimeError: If a part is not finite.

    """
    if channel.downlink is None:
        return Returned(assembled(vector, stack, wire, name=name), vector)
    place = coordinates(wire.shapes, wire.slice, stack.vectors.shape[1])
    return _sent(vector, stack.vectors[0], wire, channel.downlink, place, memory, name=name, channel=channel)


def _sent(
    vector: Tensor | None,
    like: Tensor,
    wire: Wire,
    way: Downlink,
    here: Coordinates,
    memory: Memory,
    *,
    name: str,
    channel: Channel,
) -> Returned:
    """Compress this rank's part, spread it, and read everyone's."""
    link, stage = way.link.fitted(way.compressor, here.whole), type(way.link).__name__
    key = (channel.seed, channel.optimizer, "downlink", memory.step)
    first, ends = wire.local[0], link.at_worker or link.at_rules
    state = memory.rules[DOWN_STAGE].values[stage] if DOWN_STAGE in memory.rules else blank(like)
    values = torch.zeros_like(like) if vector is None else vector
    outgoing = link.outgoing(state, values.clone())  # a link writes to what it is given, and a rule may return a row
    narrow = outgoing.to(like.dtype)
    verdict = torch.stack([values.isfinite().logical_not().sum(), unusable(narrow[None])[0]])
    flags = torch.cat([torch.tensor([int(vector is None)], device=like.device), verdict])
    none, wrong, overflown = wire.tell(flags.new_zeros(0), flags).tolist()
    if wrong:
        refuse_values(name)
    if none or overflown:
        return OVERFLOWN if overflown else Returned(None, None)
    entries = way.compressor.encode(narrow, here, generator=generator(*key, device=like.device))
    decoded = like.new_empty(here.total)
    size = lambda start, stop: way.compressor.size(_between(here, start, stop), like.dtype)  # noqa: E731
    for start, stop, part in wire.spread(entries.part(here.start, here.stop), size, varies=way.compressor.varies):
        draw = generator(*key, device=like.device)
        way.compressor.decode(part, _between(here, start, stop), generator=draw, out=decoded[start:stop])
    known = memory.workers.get(first, {}).get(DOWN_STAGE, {}).get(stage)
    at_ranks = known if isinstance(known, Tensor) else blank(decoded)
    row, after = link.receive(at_ranks, decoded)
    whole = wire.row(first).copy_(row)
    if not finite(whole):
        return OVERFLOWN
    part = whole[here.start : here.stop].clone()
    if not ends:
        return Returned(whole, part)
    own = decoded[here.start : here.stop]
    left = after[here.start : here.stop].clone() if after is not None else link.after(state, outgoing, own)
    assert left is not None
    workers = {} if after is None else {first: {DOWN_STAGE: {stage: after}}}
    return Returned(whole, part, {DOWN_STAGE: Sliced({stage: left}, wire.slice)}, workers)


def _between(place: Coordinates, start: int, stop: int) -> Coordinates:
    """The coordinates of another rank's slice, for what asks for no sum over ranks."""
    width = place.blocks.width
    return Coordinates(place.shapes, Slice(start, stop, place.total, _nothing, _nothing, width))


def _nothing(values: Tensor) -> Tensor:
    return values
