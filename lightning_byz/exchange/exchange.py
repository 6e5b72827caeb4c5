"""How the rows of workers reach the rules, and the aggregate the ranks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.placement import Placement
from lightning_byz.stack import Stack


@dataclass(frozen=True, eq=False)
class Delivery:
    """What an exchange hands to the rules of one rank.

    Args:
        stack: All rows, whole or this rank's slice of the coordinates, already inspected for values that are not finite.
        notes: The ranks' notes, added up.
        received: Number of elements this rank received from others.

    """

    stack: Stack
    notes: Int64[Tensor, " k"]
    received: int


class Exchange(ABC):
    """Brings rows from wherever workers live to wherever rules run, and the result back.

    All ranks call the same methods in the same order with tensors of the same shapes; nothing but tensors of shapes known beforehand travels.
    """

    trusts: ClassVar[str] = "whom it does not say"
    """Whom a run through this exchange trusts, for the start-up line."""

    slices: ClassVar[bool] = True
    """Whether a rank's rules see a slice of the coordinates, when there are several ranks."""

    @abstractmethod
    def place(self, workers: int) -> Placement:
        """Return which rank hosts which of ``workers`` logical workers."""

    @abstractmethod
    def scatter(
        self, rows: Float[Tensor, "m d"], notes: Int64[Tensor, " k"], *, placement: Placement, f: float
    ) -> Delivery:
        """Bring this rank's rows, in the order of its workers, to the rules; add up the notes over ranks."""

    @abstractmethod
    def gather(self, vector: Float[Tensor, " s"], stack: Stack) -> tuple[Float[Tensor, " d"], int]:
        """Return the whole vector from the part that the rules of this rank computed, and how many elements came from other ranks."""

    @abstractmethod
    def add(self, counts: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        """Return the elementwise sum over ranks."""

    @abstractmethod
    def collect(self, row: Tensor | None, *, worker: int, placement: Placement, like: Tensor) -> Tensor | None:
        """Bring one worker's row to rank 0: a tensor on the CPU there, ``None`` elsewhere. ``like`` has its shape and dtype."""

    @abstractmethod
    def share(self, tensor: Tensor) -> Tensor:
        """Return rank 0's values of ``tensor`` on every rank."""
