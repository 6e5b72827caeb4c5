"""What one step did with each worker."""

from dataclasses import dataclass, replace

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
        coefficients: Share of the row in the aggregate; ``None`` where the rule is no weighted sum of rows.
        reason: Why the step was not taken.
        bytes_received: What came to this rank from others, in bytes.
        exchange_seconds: Time this rank spent in estimators and the exchange, waiting for others included.
        rule_seconds: Time this rank spent in attack and rules, and in what is measured and remembered of the step.

    """

    step: int
    taken: bool
    census: Census
    norms: Float64[Tensor, " n"] | None = None
    distances: Float64[Tensor, " n"] | None = None
    coefficients: Float64[Tensor, " n"] | None = None
    reason: str = ""
    bytes_received: int = 0
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
    def adopted(self) -> tuple[bool, ...]:
        """Whether the worker's message was accepted in a step that was taken, so that what its turn has left counts from now on."""
        return tuple(self.taken and arrival is Arrival.ARRIVED for arrival in self.census.arrival)

    @property
    def without_gradients(self) -> bool:
        """Whether the step was not taken although nothing was broken: too few workers sent something."""
        return not self.taken and not self.census.workers(Arrival.BROKEN)

    @property
    def left_out(self) -> tuple[bool, ...]:
        """Whether the worker sent something that had no share in the aggregate, broken messages among it."""
        return tuple(word in (LEFT_OUT, Arrival.BROKEN.value) for word in self.status)


def diagnosed(report: Report, stack: Stack, vector: Tensor) -> Report:
    """Return the report with the rows' norms and their distances from the aggregate."""
    missing = stack.vectors.new_tensor([arrival is not Arrival.ARRIVED for arrival in report.census.arrival]).bool()
    norms, distances = stack.squared_norms().sqrt(), stack.squared_distances_to(vector).sqrt()
    blank = float("nan")
    return replace(
        report, norms=norms.masked_fill(missing, blank).cpu(), distances=distances.masked_fill(missing, blank).cpu()
    )
