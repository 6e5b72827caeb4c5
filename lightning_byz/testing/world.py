"""The ranks that a contract is checked on, and how they agree on what they saw."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lightning_byz.exchange import AllToAll
from lightning_byz.testing.case import Broken, Case, NothingToCheck

_MANY = 2**20  # workers: more than there are ranks anywhere


class World:
    """This process among the ranks of the process group; alone where there is none.

    Args:
        device: Where what is summed over ranks lies: one that the process group can send from.
    """

    def __init__(self, device: torch.device) -> None:
        placement = AllToAll().place(_MANY)
        self.ranks, self.rank = placement.ranks, placement.rank
        self._device = device

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over ranks of an int64 tensor."""
        return AllToAll().all_reduce(counts.to(self._device)).cpu()

    def table(self, row: Sequence[int]) -> list[list[int]]:
        """Each rank's row of whole numbers, by rank."""
        rows = torch.zeros(self.ranks, len(row), dtype=torch.int64)
        rows[self.rank] = torch.tensor(row, dtype=torch.int64)
        return self.sum(rows).tolist()


def world_of(case: Case) -> World:
    """The ranks that a case is checked on."""
    return World(case.settings["device"])


def on_every_rank(check: Callable[[Any, Case], None]) -> Callable[[Any, Case], None]:
    """Let a case that breaks a law on one rank break it on all, so that none waits for another.

    A check makes all its calls that ranks make together before it looks at what came of them.
    """

    @wraps(check)
    def agreed(exchange: Any, case: Case) -> None:
        world, seen = world_of(case), None
        case.note(ranks=world.ranks, rank=world.rank)
        try:
            check(exchange, case)
        except Exception as error:
            seen = error
        broken = [int(seen is not None and not isinstance(seen, NothingToCheck))]
        elsewhere = [rank for rank, flags in enumerate(world.table(broken)) if flags != [0]]
        if seen is not None and (broken != [0] or not elsewhere):
            raise seen
        if elsewhere:
            raise Broken(f"nothing on this rank; the messages of ranks {elsewhere} say what they saw")

    return agreed
