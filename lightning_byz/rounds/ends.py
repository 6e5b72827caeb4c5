"""What the two ends of the workers' links remember, and what a file holds of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.links import Link
from lightning_byz.memory import Memory, Sliced, Vectors
from lightning_byz.rounds.rows import REFERENCE
from lightning_byz.slice import Slice

LINK_STAGE, DOWN_STAGE = "link", "downlink"


@dataclass(frozen=True)
class Ends:
    """The memories of a link: one vector per worker at its own end, one at the rules' end, and one that is played for an attacker.

    Args:
        link: Which of them there are.
        down: The link of the way back; ``None`` for none.

    """

    link: Link
    down: Link | None = None

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
        return _wide(value, like) if isinstance(value, Tensor) else blank(like)

    def kept(
        self,
        memory: Memory,
        census: Census,
        received: Mapping[int, Tensor],
        played: Mapping[int, Tensor],
        slice: Slice | None,
    ) -> dict[str, Sliced]:
        """Return what the rules' end remembers once it is known whose rows are accepted; empty for nothing."""
        values = dict(_values(memory, LINK_STAGE))
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
        dropped = {DOWN_STAGE, LINK_STAGE} if self.link.mirrored else {DOWN_STAGE}
        workers = {
            worker: {stage: values for stage, values in stages.items() if stage not in dropped}
            for worker, stages in memory.workers.items()
        }
        return replace(memory, workers=workers)

    def loaded(self, memory: Memory, local: Sequence[int], device: torch.device) -> Memory:
        """Return what is remembered of a file, with both ends of the local workers' links, and the end of the way back that all ranks have.

        Raises:
            ValueError: If it was saved of another link.

        """
        known, workers = _values(memory, LINK_STAGE), {worker: dict(memory.workers.get(worker, {})) for worker in local}
        own = [name for stages in workers.values() for name in stages.get(LINK_STAGE, {})]
        _refuse_other("link", [*(name.split()[0] for name in known), *own], self.name)
        _refuse_other("downlink", list(back := _values(memory, DOWN_STAGE)), type(self.down).__name__)
        self._refuse_missing(memory, local)
        for worker in local if self.link.mirrored else ():
            if self._of(worker) in known:
                workers[worker][LINK_STAGE] = {self.name: known[self._of(worker)].to(device, copy=True)}
        if back and self.down is not None and self.down.at_rules:
            workers[local[0]][DOWN_STAGE] = {name: vector.to(device, copy=True) for name, vector in back.items()}
        return replace(memory, workers={worker: stages for worker, stages in workers.items() if stages})

    def _refuse_missing(self, memory: Memory, local: Sequence[int]) -> None:
        """Refuse the memory of a run whose links have remembered nothing of messages that were accepted, where these would have."""
        known, counts = _values(memory, LINK_STAGE), memory.counts
        accepted = [worker for worker, count in enumerate(counts.get("accepted", counts.get("adopted", ()))) if count]
        if self.link.at_rules:
            missing = any(self._of(worker) not in known for worker in accepted)
        else:
            here = [worker for worker in accepted if worker in local and self.link.at_worker]
            missing = any(LINK_STAGE not in memory.workers.get(worker, {}) for worker in here)
        if missing:
            _refuse("link", "whose link remembers nothing", self.name)
        remembers = self.down is not None and (self.down.at_worker or self.down.at_rules)
        in_lock_step = "accepted" not in counts  # else messages are accepted at steps that are not taken too
        if remembers and accepted and in_lock_step and DOWN_STAGE not in memory.rules:
            _refuse("downlink", "whose downlink remembers nothing", type(self.down).__name__)

    def state(self, memory: Memory, worker: int, like: Tensor) -> Tensor:
        """What the rules' end remembers of a worker."""
        known = _values(memory, LINK_STAGE)
        return _wide(known[self._of(worker)], like) if self._of(worker) in known else blank(like)

    def played(self, memory: Memory, worker: int, like: Tensor) -> Tensor:
        """What is played to be remembered of an attacker: until its first accepted row, what is of an honest worker."""
        known = _values(memory, LINK_STAGE)
        return _wide(known[self._for(worker)], like) if self._for(worker) in known else self.state(memory, worker, like)

    def _of(self, worker: int) -> str:
        return f"{self.name} of worker {worker}"

    def _for(self, worker: int) -> str:
        return f"{self.name} played for worker {worker}"


def without_aggregate(before: Memory, after: Memory) -> Memory:
    """Return what is remembered after a step, but of its aggregate: there what was before it."""
    rules = {stage: own for stage, own in after.rules.items() if stage not in (REFERENCE, DOWN_STAGE)}
    rules |= {stage: own for stage, own in before.rules.items() if stage in (REFERENCE, DOWN_STAGE)}
    workers = {
        worker: {stage: own for stage, own in stages.items() if stage != DOWN_STAGE}
        | {stage: own for stage, own in before.workers.get(worker, {}).items() if stage == DOWN_STAGE}
        for worker, stages in after.workers.items()
    }
    return replace(after, workers=workers, rules=rules)


def blank(like: Tensor) -> Tensor:
    """Return a vector of a link at the start, in float32 or wider."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _wide(state: Tensor, like: Tensor) -> Tensor:
    """The state in the dtype of a blank one, which is another once parameters of another dtype are trained."""
    return state.to(torch.promote_types(like.dtype, torch.float32))


def _values(memory: Memory, stage: str) -> Mapping[str, Tensor]:
    return memory.rules[stage].values if stage in memory.rules else {}


def _refuse_other(stage: str, saved: Sequence[str], own: str) -> None:
    """Refuse what another link has remembered."""
    if foreign := [name for name in saved if name != own]:
        _refuse(stage, f"with the {stage} {foreign[0]}()", own)


def _refuse(stage: str, said: str, own: str) -> NoReturn:
    here = "none" if own == "NoneType" else f"{own}()"
    raise ValueError(
        f"The checkpoint is of a run {said}, and this run has {here}: resume with the same {stage}, or start a new run from the weights alone."
    )
