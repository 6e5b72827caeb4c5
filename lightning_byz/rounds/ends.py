"""What the two ends of the workers' links remember, and what a file holds of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.links import Link
from lightning_byz.memory import Memory, Sliced, Vectors
from lightning_byz.slice import Slice

LINK_STAGE = "link"


@dataclass(frozen=True)
class Ends:
    """The memories of a link: one vector per worker at its own end, one at the rules' end, and one that is played for an attacker.

    Args:
        link: Which of them there are.

    """

    link: Link

    @property
    def name(self) -> str:
        """What the link's vectors are called in memories and files."""
        return type(self.link).__name__

    def remembered(self, like: Float[Tensor, " d"]) -> Mapping[str, Vectors]:
        """Return what the worker's end remembers at the start, by stage."""
        return {LINK_STAGE: {self.name: blank(like)}} if self.link.at_worker else {}

    def own(self, memory: Memory, worker: int, like: Float[Tensor, " d"]) -> Tensor | None:
        """Return what a local worker's end remembers; ``None`` for links without."""
        if not self.link.at_worker:
            return None
        value = memory.workers.get(worker, {}).get(LINK_STAGE, {}).get(self.name)
        return value if isinstance(value, Tensor) else blank(like)

    def kept(
        self,
        memory: Memory,
        census: Census,
        received: Mapping[int, Tensor],
        played: Mapping[int, Tensor],
        slice: Slice | None,
    ) -> dict[str, Sliced]:
        """Return what the rules' end remembers once it is known whose rows are accepted; empty for nothing."""
        values = dict(memory.rules[LINK_STAGE].values) if LINK_STAGE in memory.rules else {}
        for name, states in ((self._of, received), (self._for, played)):
            accepted = [worker for worker in states if census.arrival[worker] is Arrival.ARRIVED]
            values.update((name(worker), states[worker]) for worker in accepted)
        return {LINK_STAGE: Sliced(values, slice)} if values else {}

    def mirrors(
        self, memory: Memory, like: Float[Tensor, "n s"], attackers: Sequence[int]
    ) -> Float[Tensor, "n s"] | None:
        """Return what both ends of each worker's link remember, the played state for attackers; ``None`` for links without."""
        if not self.link.mirrored:
            return None
        known = [self.played if worker in attackers else self.state for worker in range(len(like))]
        return torch.stack(
            [state(memory, worker, row) for worker, (state, row) in enumerate(zip(known, like, strict=True))]
        )

    def saved(self, memory: Memory) -> Memory:
        """Return what a file must hold: of what both ends remember, the rules' end."""
        if not self.link.mirrored:
            return memory
        workers = {
            worker: {stage: values for stage, values in stages.items() if stage != LINK_STAGE}
            for worker, stages in memory.workers.items()
        }
        return replace(memory, workers=workers)

    def loaded(self, memory: Memory, local: Sequence[int], device: torch.device) -> Memory:
        """Return what is remembered of a file, with both ends of the local workers' links.

        Raises:
            ValueError: If it was saved of another link.

        """
        known = memory.rules[LINK_STAGE].values if LINK_STAGE in memory.rules else {}
        if foreign := [name for name in known if not name.startswith(f"{self.name} ")]:
            raise ValueError(
                f"The checkpoint is of a run with link={foreign[0].split()[0]}(), and this one has link={self.name}(): resume with the same link, or"
                " start a new run from the weights alone."
            )
        if not self.link.mirrored:
            return memory
        ends = {
            worker: {LINK_STAGE: {self.name: known[self._of(worker)].to(device, copy=True)}}
            for worker in local
            if self._of(worker) in known
        }
        workers = {worker: {**memory.workers.get(worker, {}), **ends.get(worker, {})} for worker in local}
        return replace(memory, workers={worker: stages for worker, stages in workers.items() if stages})

    def state(self, memory: Memory, worker: int, like: Tensor) -> Tensor:
        """What the rules' end remembers of a worker."""
        known = memory.rules[LINK_STAGE].values if LINK_STAGE in memory.rules else {}
        return known[self._of(worker)] if self._of(worker) in known else blank(like)

    def played(self, memory: Memory, worker: int, like: Tensor) -> Tensor:
        """What is played to be remembered of an attacker: until its first accepted row, what is of an honest worker."""
        known = memory.rules[LINK_STAGE].values if LINK_STAGE in memory.rules else {}
        return known[self._for(worker)] if self._for(worker) in known else self.state(memory, worker, like)

    def _of(self, worker: int) -> str:
        return f"{self.name} of worker {worker}"

    def _for(self, worker: int) -> str:
        return f"{self.name} played for worker {worker}"


def blank(like: Tensor) -> Tensor:
    """Return a vector of a link at the start, in float32 or wider."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
