"""One value of each buffer, made of all workers' values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.flat import Layout
from lightning_byz.stack import Stack


def agreed(
    own: Sequence[Sequence[Tensor]],
    rule: Aggregator,
    exchange: Exchange,
    placement: Placement,
    weights: Sequence[float] | None,
    *,
    device: torch.device,
) -> list[Tensor] | None:
    """Return what a rule makes of floating buffers, a row per worker; ``None`` where no row that counts is finite. Every rank must call it.

    Args:
        own: The buffers of each local worker.
        rule: Makes one row of all.
        exchange: Brings the rows to the rules.
        placement: Which workers live here.
        weights: How much each worker counts; ``None`` for all alike.
        device: Where the buffers are.

    """
    layout = Layout.of((str(place), value) for place, value in enumerate(own[0]))
    wire = exchange.open(layout.total, dtype=layout.dtype, device=device, placement=placement)
    for worker, values in zip(placement.local, own, strict=True):
        layout.flatten(values, out=layout.views(wire.row(worker)))
    vectors, counts = wire.deliver(range(placement.workers), torch.zeros(0, dtype=torch.int64))
    broken = [count > 0 for count in counts.tolist()]
    if all(out or (weights is not None and not weights[worker]) for worker, out in enumerate(broken)):
        return None
    stack = Stack(vectors, weights, slice=wire.slice).inspected(counts).excluding(torch.tensor(broken), faulty=False)
    parts = layout.views(wire.assemble(rule(stack)))
    return [part.to(value.dtype, copy=True) for part, value in zip(parts, own[0], strict=True)]
