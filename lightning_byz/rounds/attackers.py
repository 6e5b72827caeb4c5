"""The workers that attack in an experiment: what they do to their batches, and what they send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_byz.attacks import Attack, Sight
from lightning_byz.census import Arrival, Census
from lightning_byz.memory import Memory
from lightning_byz.random import generator
from lightning_byz.rounds.channel import Channel, Shapes
from lightning_byz.rounds.checks import check_rows, unwritten
from lightning_byz.rounds.defence import Defence
from lightning_byz.stack import Stack

ATTACK_STAGE = "attack"


class Replaced(NamedTuple):
    """What the rules get from attackers.

    Args:
        stack: The rows of all workers.
        broken: Which attackers sent numbers that no rule can use.
        played: What the attackers' ends of their links are played to remember, by worker, if their rows are accepted.

    """

    stack: Stack
    broken: Sequence[int] = ()
    played: Mapping[int, Tensor] = {}


@dataclass(frozen=True)
class Attackers:
    """Who attacks, and how. They act at the rules' side, on whole rows or slices: who attacks changes no collective.

    Args:
        workers: Their ids.
        attack: What they do; ``None`` for nothing.

    """

    workers: Sequence[int] = ()
    attack: Attack | None = None

    @property
    def acting(self) -> Sequence[int]:
        """Who of them does anything: none without an attack."""
        return () if self.attack is None else self.workers

    def past(self, memory: Memory) -> dict[int, list[Tensor]]:
        """Return the rows that each attacker would have sent, as far as the attack remembers them, oldest first."""
        if not (count := self._remembers):
            return {}
        past: dict[int, list[Tensor]] = {worker: [] for worker in self.workers}
        for name, row in _kept(memory).items():
            past.setdefault(_owner(name), []).append(row)
        return {worker: rows[-count:] for worker, rows in past.items()}

    def remembered(self, memory: Memory, honest: Stack, census: Census) -> dict[str, Tensor]:
        """Return what the attack remembers after this step; a worker without a usable row adds none."""
        count, past = self._remembers, {}
        for worker in self.workers if count else ():
            rows = [(name, row) for name, row in _kept(memory).items() if _owner(name) == worker]
            if census.arrival[worker] is Arrival.ARRIVED:
                rows.append((f"worker {worker} step {memory.step}", honest.vectors[worker].clone()))
            past.update(rows[-count:])
        return past

    def replaced(
        self,
        honest: Stack,
        census: Census,
        memory: Memory,
        defence: Defence,
        *,
        channel: Channel,
        shapes: Shapes | None = None,
    ) -> Replaced:
        """Return what the rules get where the attackers' messages have arrived, compressed as all messages are.

        Usable rows are written in place: nobody needs those that attackers would have sent any more.
        """
        seen = [worker for worker in self.workers if census.in_use[worker]]
        due = [worker for worker in seen if census.arrival[worker] is Arrival.ARRIVED]
        if self.attack is None or not due:
            return Replaced(honest)
        past, step = self.past(memory), memory.step
        mirrors = channel.ends.mirrors(memory, honest.vectors, self.workers)
        sight = Sight(
            honest,
            seen,
            generator(defence.seed, defence.optimizer, "attack", step, device=honest.vectors.device),
            defence=lambda tried: defence.tried(tried, step=step, reference=honest.reference),
            past=past,
            ages=census.ages,
            step=step,
            mirrors=mirrors,
        )
        held = {
            "stack.vectors": [honest.vectors],
            "stack.reference": [honest.reference],
            "mirrors": [mirrors],
            "past": [row for rows in past.values() for row in rows],
        }
        with unwritten(type(self.attack).__name__, held):
            rows = self.attack.replace(sight)
        check_rows(type(self.attack).__name__, rows, (len(seen), honest.vectors.shape[1]))
        if len(due) < len(seen):
            rows = rows[[place for place, worker in enumerate(seen) if worker in due]]
        sent = Stack(rows.to(honest.vectors.dtype, copy=True), slice=honest.slice)
        usable, rows = _usable(due, sent)
        played: Mapping[int, Tensor] = {}
        if usable and not channel.plain:
            rebuilt, played = channel.played(memory, usable, replace(sent, vectors=rows), shapes=shapes)
            usable, rows = _usable(usable, rebuilt)
        honest.vectors[usable] = rows
        broken = [worker for worker in due if worker not in usable]
        counts = torch.tensor([int(worker in broken) for worker in range(len(census.arrival))])
        return Replaced(replace(honest).inspected(counts), broken, played)

    @property
    def _remembers(self) -> int:
        return 0 if self.attack is None else self.attack.remembers


def _usable(workers: Sequence[int], sent: Stack) -> tuple[list[int], Tensor]:
    """Whose rows rules can use, and those rows."""
    places = [place for place, count in enumerate(sent.nonfinite().tolist()) if not count]
    return [workers[place] for place in places], sent.vectors if len(places) == len(workers) else sent.vectors[places]


def _kept(memory: Memory) -> Mapping[str, Tensor]:
    return memory.rules[ATTACK_STAGE].values if ATTACK_STAGE in memory.rules else {}


def _owner(name: str) -> int:
    """Return the worker whose past row has this name."""
    return int(name.split()[1])
