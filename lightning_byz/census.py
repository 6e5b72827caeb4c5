"""What became of each worker's message at one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Arrival(Enum):
    """What became of a worker's message; the value is the word that reports and tables use."""

    ARRIVED = "arrived"
    """It came, and every number of it can be used."""
    BROKEN = "broken"
    """It came with numbers that are not finite, or that no rule can use."""
    ABSENT = "absent"
    """The worker sent nothing, as one whose ``training_step`` returns ``None``; that is no fault."""
    NOT_DUE = "not due"
    """Nothing was expected of the worker at this step."""


@dataclass(frozen=True)
class Census:
    """Everything known of each worker at one step: n entries each, on the CPU, read from the device once.

    Args:
        arrival: What became of each worker's message.
        weights: How much each worker's row counts at this step; 0 for a row that is broken or absent.
        ages: Steps since the row in use was computed.
        used: For each parameter, by how many of the workers whose row is in use it was used.

    """

    arrival: Sequence[Arrival]
    weights: Sequence[float]
    ages: Sequence[int]
    used: Sequence[int]

    @property
    def in_use(self) -> list[bool]:
        """Whether rules see a row of the worker: the one that arrived, or an earlier one."""
        return [word is Arrival.ARRIVED or weight > 0 for word, weight in zip(self.arrival, self.weights, strict=True)]

    def workers(self, arrival: Arrival) -> list[int]:
        """Return the ids of the workers whose message became this.

        Example:
            >>> Census([Arrival.ABSENT, Arrival.ARRIVED], [0.0, 1.0], [0, 0], []).workers(Arrival.ABSENT)
            [0]

        """
        return [worker for worker, own in enumerate(self.arrival) if own is arrival]
