"""What one step did with each worker."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float64
from torch import Tensor

from lightning_byz.stack import Stack


@dataclass(frozen=True, eq=False)
class Report:
    """What one step did with each worker, on the CPU.

    Args:
        step: Number of the step, from 0.
        taken: Whether the optimizer got an aggregate.
        accepted: Whether the worker's row was usable.
        present: Whether the worker sent anything; a ``training_step`` that returns ``None`` is absence, not a fault.
        norms: Euclidean norm of the row that the rules saw, NaN for rows not accepted; ``None`` unless diagnosing.
        distances: Euclidean distance of that row from the aggregate, likewise.
        coefficients: Share of the row in the aggregate; ``None`` where the rule is no weighted sum of rows.
        reason: Why the step was not taken.
        received: Elements this rank received from others.
        exchange_seconds: Time this rank spent in the exchange, waiting for others included.
        rule_seconds: Time this rank spent in attack and rules.

    """

    step: int
    taken: bool
    accepted: Bool[Tensor, " n"]
    present: Bool[Tensor, " n"]
    norms: Float64[Tensor, " n"] | None = None
    distances: Float64[Tensor, " n"] | None = None
    coefficients: Float64[Tensor, " n"] | None = None
    reason: str = ""
    received: int = 0
    exchange_seconds: float = 0.0
    rule_seconds: float = 0.0

    @property
    def left_out(self) -> Bool[Tensor, " n"]:
        """Whether the worker was present and had no share in the aggregate."""
        unused = ~self.accepted if self.coefficients is None else ~self.accepted | (self.coefficients == 0)
        return self.present & unused


def diagnosed(report: Report, stack: Stack, vector: Tensor) -> Report:
    """Return the report with the rows' norms and their distances from the aggregate."""
    unusable = ~(report.present & report.accepted)
    norms, distances = stack.squared_norms().sqrt(), stack.squared_distances_to(vector).sqrt()
    return replace(report, norms=_blank(norms, unusable), distances=_blank(distances, unusable))


def _blank(values: Tensor, where: Tensor) -> Tensor:
    """Return values on the CPU with NaN where nothing was measured."""
    return values.masked_fill(where.to(values.device), float("nan")).cpu()
