"""Messages that wait for their worker to be due, with the memory that each would leave."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.exchange import Wire
from lightning_byz.memory import NOWHERE, Memory, Vectors
from lightning_byz.rounds.ledger import Counts
from lightning_byz.rounds.round import Sent

PENDING, PROPOSED = "pending", "proposed"

Stages = Mapping[str, Vectors]


def hand_over(workers: Mapping[int, Stages], due: Sequence[int], wire: Wire) -> None:
    """Write the messages of the local workers that are due to their rows."""
    for worker in due:
        if worker in wire.local:
            stages = workers.get(worker, {})
            if PENDING in stages:
                message = stages[PENDING]["message"]
                assert isinstance(message, Tensor)
                wire.row(worker).copy_(message)
            else:
                wire.row(worker).zero_()


def adopted(
    workers: Mapping[int, Stages], ends: Mapping[int, Stages], due: Sequence[int], census: Census, wire: Wire
) -> dict[int, Stages]:
    """Return what local workers remember once those that are due have delivered: of an accepted message what it leaves, of another one nothing.

    Args:
        workers: What they remember before.
        ends: What the ends of their links remember of what they have delivered.
        due: Whose message was expected.
        census: What became of it.
        wire: Knows the local workers.

    """
    after = dict(workers)
    for worker in [one for one in due if one in wire.local and PENDING in workers.get(one, {})]:
        stages = dict(workers[worker])
        proposed = stages.pop(PROPOSED)
        del stages[PENDING]
        if census.arrival[worker] is Arrival.ARRIVED:
            stages |= {"estimator": proposed, **ends.get(worker, {})}
        after[worker] = stages
    return after


def points_of(memory: Memory, sent: Mapping[int, Sent], counts: Counts, wire: Wire) -> dict[int, Tensor]:
    """Return the points of local workers, one each at most: where its waiting message was made, or else its adopted estimate."""
    known = dict(memory.points)
    known.update((memory.step, own.point) for own in sent.values() if own.point is not None)
    return {step: known[step] for step in sorted({counts["point"][one] for one in wire.local} - {NOWHERE})}
