"""What one step did with each worker."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.stack import Stack

LEFT_OUT = "left out"


@dataclass(frozen=True, eq=False)
class Report:
    """What one step did with each worker, on the CPU.

    Args:
        step: Number of the step, from 0.
        taken: Whether the optimizer got an aggregate.
        census: What became of each worker's message, and what is known of its row.
        norms: Euclidean norm of the row that the rules saw, NaN where none arrived; ``None`` unless diagnosing.
        distances: Euclidean distance of that row from the aggregate, likewise.
        coefficients: Share of the row in the aggregate; ``None`` where the rule is no weighted sum of rows. Under a code, the rows of a group that
            fit have equal shares: none of them changes the aggregate.
        named: The workers whose rows did not fit what their group sent, which is exact unless more of it lie than the code corrects; ``None`` without
            a code.
        error: Squared distance of the aggregate from the weighted mean of the rows whose workers do not attack in this run, NaN where there is no
            such row; ``None`` unless diagnosing. Without attackers all rows count, and it says how far the rule is from the mean.
        variance: Weighted mean of these rows' squared distances from that mean, likewise.
        kappa: What the rules promise of ``error / variance``; ``None`` where they promise nothing, and unless diagnosing.
        f: The weight that may be Byzantine, as the rules were told; NaN where they were not asked.
        reason: Why the step was not taken.
        kept: Whether what arrived is kept whether or not the step is taken, as under arrivals.
        deliveries: How many messages of each worker were accepted since the last update, where these may be several; ``None`` for the census's.
        fault: Whether the step was not taken because more weight was broken than f allows; ``None`` where any broken message of it says so.
        bytes_received: What came to this rank from others, in bytes.
        bytes_sent: What this rank has sent to others, in bytes.
        message_bytes: What one worker's message takes on a wire, wherever it lives.
        aggregate_bytes: What the aggregate takes on its way to one worker, likewise; 0 for a step that is not taken.
        exchange_seconds: Time this rank spent in estimators and the exchange, waiting for others included.
        rule_seconds: Time this rank spent in attack and rules, and in what is measured and remembered of the step.

    """

    step: int
    taken: bool
    census: Census
    norms: Float64[Tensor, " n"] | None = None
    distances: Float64[Tensor, " n"] | None = None
    coefficients: Float64[Tensor, " n"] | None = None
    named: Sequence[int] | None = None
    error: float | None = None
    variance: float | None = None
    kappa: float | None = None
    f: float = nan
    reason: str = ""
    kept: bool = False
    deliveries: Sequence[int] | None = None
    fault: bool | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    message_bytes: int = 0
    aggregate_bytes: int = 0
    exchange_seconds: float = 0.0
    rule_seconds: float = 0.0

    @property
    def status(self) -> tuple[str, ...]:
        """One word per worker: ``arrived``, ``broken``, ``absent``, ``not due``, or ``left out`` if it had no share in the aggregate."""
        unused = [False] * len(self.census.arrival)
        if self.coefficients is not None:
            unused = [share == 0 for share in self.coefficients.tolist()]
        return tuple(
            LEFT_OUT if out and arrival is Arrival.ARRIVED else arrival.value
            for arrival, out in zip(self.census.arrival, unused, strict=True)
        )

    @property
    def uplink_bytes(self) -> int:
        """What the messages of the workers that have sent one take on a wire."""
        came = (Arrival.ARRIVED, Arrival.BROKEN)
        return self.message_bytes * sum(arrival in came for arrival in self.census.arrival)

    @property
    def adopted(self) -> tuple[bool, ...]:
        """Whether the worker's message was accepted, so that what its turn has left counts from now on."""
        return tuple((self.taken or self.kept) and arrival is Arrival.ARRIVED for arrival in self.census.arrival)

    @property
    def without_gradients(self) -> bool:
        """Whether the step was not taken although nothing was broken: too few workers sent something."""
        broken = bool(self.census.workers(Arrival.BROKEN)) if self.fault is None else self.fault
        return not self.taken and not broken

    @property
    def left_out(self) -> tuple[bool, ...]:
        """Whether the worker sent something that had no share in the aggregate, broken messages among it."""
        return tuple(word in (LEFT_OUT, Arrival.BROKEN.value) for word in self.status)


def diagnosed(
    report: Report, stack: Stack, vector: Tensor, *, attackers: Sequence[int] = (), kappa: float | None = None
) -> Report:
    """Return the report with norms, distances from the aggregate, and how far that is from the honest rows' mean.

    Four readings of the rows, three where a rule has asked for their lengths, and four sums over slices, whoever attacks.
    """
    norms, distances = stack.squared_norms().sqrt(), stack.squared_distances_to(vector).sqrt()
    honest = stack.weights.clone()
    honest[list(attackers)] = 0.0
    shares = (honest / honest.sum()).nan_to_num()
    mean = stack.combination(shares)
    variance = (shares * stack.squared_distances_to(mean)).sum()
    error = Stack(vector[None], slice=stack.slice).squared_distances_to(mean)
    found = torch.cat([norms, distances, error, variance[None], shares.sum()[None]]).cpu()
    missing = ~torch.tensor(report.census.in_use)
    rows, known = found[:-3].view(2, -1).masked_fill(missing, float("nan")), bool(found[-1] > 0)
    realised = found[-3:-1].tolist() if known else [float("nan")] * 2
    return replace(report, norms=rows[0], distances=rows[1], error=realised[0], variance=realised[1], kappa=kappa)
