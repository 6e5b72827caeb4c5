"""Single steps of a round in this process, without Lightning, on rows written by hand."""

from collections.abc import Sequence

from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.exchange import Local
from lightning_byz.memory import Memory
from lightning_byz.rounds import Attackers, Defence, Outcome, Robust, Round, Sent


def robust(
    n: int, f: float, aggregator: Aggregator, *, attackers: Sequence[int] = (), attack: Attack | None = None, **rest
) -> Robust:
    """Return the round of n workers that send their gradients."""
    return Robust(Defence(n, f, aggregator, **rest), attackers=Attackers(attackers, attack))


def take(round: Round, memory: Memory, rows: Tensor, *, absent: Sequence[int] = (), **rest) -> Outcome:
    """Take one step on these rows; those of absent workers are not sent."""
    local = Local()
    wire = local.open(rows.shape[1], dtype=rows.dtype, device=rows.device, placement=local.place(len(rows)))
    for worker, row in enumerate(rows):
        wire.row(worker).copy_(row)
    sent = {worker: Sent([wire.row(worker)], [True]) for worker in range(len(rows)) if worker not in absent}
    outcome = round.take(memory, sent, wire, parameters=1, **rest)
    vector = None if outcome.vector is None else outcome.vector.clone()
    for worker in range(len(rows)):
        wire.row(worker).fill_(-1.0)  # the next step writes over these rows
    return outcome._replace(vector=vector)
