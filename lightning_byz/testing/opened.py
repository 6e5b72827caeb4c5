"""Wires that laws open, and what they write to them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_byz.exchange import Exchange, Placement, Wire
from lightning_byz.kernels import block_size
from lightning_byz.testing.case import Case
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.world import World, world_of

LENGTHS = [130, 1, 1000, 3, 5000, 64, 20011]


@dataclass(frozen=True)
class Opened:
    """A wire that a case has opened, and what it was opened for."""

    world: World
    placement: Placement
    wire: Wire
    n: int
    d: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def own(self) -> slice:
        """The coordinates of this rank's rules."""
        part = self.wire.slice
        return slice(0, self.d) if part is None else slice(part.start, part.stop)

    def rows(self, case: Case) -> Tensor:
        """Rows of any bits, alike on all ranks."""
        return random_bits(case, self.n, self.d, dtype=self.dtype).to(self.device)

    def write(self, rows: Tensor) -> None:
        """Write the local workers' rows."""
        for worker in self.wire.local:
            self.wire.row(worker).copy_(rows[worker])

    def no_facts(self) -> Tensor:
        """What a rank says that has nothing to say."""
        return torch.zeros(0, dtype=torch.int64)


def open_wire(exchange: Exchange, case: Case, *, d: int | None = None) -> Opened:
    """A wire for a few workers, at least one per rank; blocks of the usual width, or several times as wide."""
    world, device = world_of(case), case.settings["device"]
    n = case.whole(world.ranks, max(world.ranks, case.workers))
    d = LENGTHS[case.seed % len(LENGTHS)] if d is None else d
    dtype = case.one_of(DTYPES)
    times = case.one_of([None, None, 1, 2, 3])
    width = block_size(d) * (times or 1)
    case.note(n=n, d=d, dtype=dtype, width=None if times is None else width)
    placement = exchange.place(n)
    wire = exchange.open(d, dtype=dtype, device=device, placement=placement, width=None if times is None else width)
    return Opened(world, placement, wire, n, d, width, dtype, device)


def again(exchange: Exchange, one: Opened) -> Opened:
    """Another wire like one that is open."""
    wire = exchange.open(one.d, dtype=one.dtype, device=one.device, placement=one.placement, width=one.width)
    return replace(one, wire=wire)


def due_of(case: Case, wire: Opened) -> list[int]:
    """All workers in order, or some of them in any order: none, one, or those of one rank."""
    n, order = wire.n, case.order(wire.n).tolist()
    host = wire.placement.of(case.whole(0, wire.world.ranks - 1))
    due = case.one_of(
        [list(range(n)), order, order[: case.whole(0, n)], order[:1], [], [w for w in order if w in host]]
    )
    case.note(due=due)
    return due


def random_bits(case: Case, *shape: int, dtype: torch.dtype) -> Tensor:
    """Numbers of any bits, a third of them NaN with payloads, infinities, subnormal numbers and zeros of both signs; alike on all ranks."""
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=case.generator).bool()
    count = torch.Size(shape).numel()
    drawn = torch.randint(256, (count * dtype.itemsize,), generator=case.generator, dtype=torch.uint8).view(dtype)
    if not dtype.is_floating_point:
        return drawn.view(shape)
    limits, whole = torch.finfo(dtype), {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    special = [float("nan"), float("inf"), float("-inf"), limits.smallest_normal / 4, -0.0, 0.0, limits.max, 1.0]
    bits = torch.tensor(special, dtype=torch.float64).to(dtype).view(whole)
    bits[0] |= 1  # a payload
    which = torch.randint(3 * len(bits), (count,), generator=case.generator)
    return torch.where(which < len(bits), bits[which % len(bits)], drawn.view(whole)).view(dtype).view(shape)
