"""What starts and ends the workers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from lightning_byz.serving.common import Common
from lightning_byz.serving.line import Line
from lightning_byz.serving.messages import Sizes


class Seat(NamedTuple):
    """Where a worker connects, and what it starts from.

    Args:
        worker: The worker.
        address: Where the server listens; ``None`` where it does not.
        key: What it shows there.
        deadline: Seconds in which the server must have taken it.
        sizes: Of all that travels.
        digests: Of the server's module and libraries.
        remembered: What it remembers of an earlier run, as bytes; ``None`` for nothing.
        turn: How many turns it has taken.
        held: Descriptors of the server that a forked process must close.

    """

    worker: int
    address: tuple[str, int] | None
    key: bytes
    deadline: float
    sizes: Sizes
    digests: tuple[int, int]
    remembered: bytes | None
    turn: int
    held: tuple[int, ...]


class Engine(ABC):
    """Starts and ends the workers."""

    workers: int
    """Number of workers."""
    knocks: ClassVar[bool] = True
    """Whether its workers come to the server's door."""

    @abstractmethod
    def start(self, seat: Seat) -> None:
        """Start a worker, or start it again."""

    def line(self, seat: Seat, common: Common) -> Line | None:
        """Return the server's end of a worker that has been started; ``None`` where the worker comes to the door."""
        return None

    @abstractmethod
    def ended(self) -> Mapping[int, str]:
        """Return the workers whose processes have ended, with how."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, whatever they do."""
