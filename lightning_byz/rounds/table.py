"""The table of last messages, and what rules may see of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.census import Arrival
from lightning_byz.memory import Memory
from lightning_byz.rounds.ledger import AT_SCALE, Counts, Ledger
from lightning_byz.rounds.overflow import UNHEARD, too_large
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.weighing import Weighing
from lightning_byz.rounds.weights import ROUNDING
from lightning_byz.slice import Slice
from lightning_byz.stack import Stack

TABLE = "arrivals"


def rows_of(memory: Memory) -> Float[Tensor, "n s"] | None:
    """Return the table that is remembered; ``None`` before the first step."""
    return memory.rules[TABLE].values["rows"] if TABLE in memory.rules else None


@contextmanager
def kept_rows(memory: Memory, due: Sequence[int]) -> Iterator[Float[Tensor, "k s"] | None]:
    """Yield a copy of the rows of those that are due, ``None`` before the first step; put it back into the table if the block raises."""
    table = rows_of(memory)
    before = None if table is None else table[list(due)]
    try:
        yield before
    except BaseException:
        if table is not None and before is not None:
            table[list(due)] = before
        raise


def updated(
    before: Float[Tensor, "n s"] | None, vectors: Float[Tensor, "k s"], due: Sequence[int], arrival: Sequence[Arrival]
) -> Float[Tensor, "n s"]:
    """Write the usable ones of the messages that were due to the table, and return it; zero where a worker has sent none."""
    table = vectors.new_zeros(len(arrival), vectors.shape[1]) if before is None else before
    usable = [place for place, worker in enumerate(due) if arrival[worker] is Arrival.ARRIVED]
    if usable:
        table[[due[place] for place in usable]] = vectors if len(usable) == len(due) else vectors[usable]
    return table


class Judged(NamedTuple):
    """A table as rules see it.

    Args:
        stack: Its rows with their weights, and f in their units.
        weights: How much each worker's row counts; 0 for none.
        used: For each parameter, by how many rows in use it was used.

    """

    stack: Stack
    weights: list[float]
    used: list[int]


@dataclass(frozen=True)
class Judge:
    """Says how the rows of a table count, and how much broken weight is too much.

    Args:
        weighing: How rows count.
        f: How many workers may be Byzantine, in heads.
        attackers: The workers that attack in this experiment.

    """

    weighing: Weighing
    f: float
    attackers: Sequence[int]

    def judged(
        self, rows: Tensor, ledger: Ledger, counts: Counts, *, reference: Tensor | None, slice: Slice | None
    ) -> Judged:
        """Return the table as rules see it; who has sent broken messages only is taken for one of the Byzantine ones."""
        accepted, ages = counts["accepted"], ledger.ages(counts)
        weights = self.weighing.weights(accepted, ages)
        used = ledger.usage.tally(counts, [weight > 0 for weight in weights])
        hollow = [not count and refused > 0 for count, refused in zip(accepted, counts["refused"], strict=True)]
        known = self.weighing.weights([count + out for count, out in zip(accepted, hollow, strict=True)], ages)
        stack = Stack(rows, known, self._f(known), reference=reference, slice=slice)
        stack = stack.inspected(torch.zeros(len(rows), dtype=torch.int64))
        return Judged(stack.excluding(torch.tensor(hollow), faulty=True) if any(hollow) else stack, weights, used)

    def tolerated(self, stack: Stack, report: Report, counts: Counts) -> tuple[Stack | None, Report, Counts]:
        """Return the stack, if something new is in it and no more weight is broken than f allows; a report that says why not; and the counts."""
        census = report.census
        refused = [worker for worker, count in enumerate(counts["refused"]) if count]
        weights = self.weighing.weights([max(count, 1) for count in counts["accepted"]], census.ages)
        f, weight = self._f(weights), sum(weights[worker] for worker in refused)
        if weight > f + ROUNDING * sum(weights):
            reason = (
                f"the last messages of workers {refused} hold numbers that are not finite or not usable and weigh {weight:g} together, but at most"
                f" f = {f:g} of the weight {sum(weights):g} may be faulty"
            )
            return None, replace(report, reason=reason, fault=bool(census.workers(Arrival.BROKEN))), counts
        if too_large(counts.get(AT_SCALE, ()), weights, f):
            reason = "gradients overflow at the gradient scaler's scale"
            return None, replace(report, reason=reason, fault=True), {**counts, AT_SCALE: [UNHEARD] * len(weights)}
        if not census.workers(Arrival.ARRIVED):
            return None, replace(report, reason="no usable message has arrived", fault=False), counts
        return stack, replace(report, fault=False), counts

    def _f(self, weights: Sequence[float]) -> float:
        return self.weighing.f(weights, self.f, self.attackers)
