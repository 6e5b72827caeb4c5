"""What ranks tell each other of their workers at a step, and what is known of all workers then."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.rounds.round import Sent


def facts_of(sent: Mapping[int, Sent], *, workers: int, parameters: int) -> Tensor:
    """Return which of the local workers sent something, and by how many of them each parameter was used."""
    used = [sum(flags) for flags in zip(*(own.used for own in sent.values()), strict=True)] or [0] * parameters
    return torch.tensor([*(worker in sent for worker in range(workers)), *used], dtype=torch.int64)


def census_of(facts: Sequence[int], weights: Sequence[float] | None, *, workers: int) -> Census:
    """Read the facts of all ranks: numbers that no rule can use per row, who sent something, uses per parameter."""
    n = workers
    arrival = [Arrival.ARRIVED if here else Arrival.ABSENT for here in facts[n : 2 * n]]
    broken = [worker for worker in range(n) if facts[worker] and arrival[worker] is Arrival.ARRIVED]
    return with_broken(Census(arrival, (), [0] * n, facts[2 * n :]), broken, weights)


def with_broken(census: Census, broken: Sequence[int], weights: Sequence[float] | None) -> Census:
    """Return the census with some messages broken; workers count by their ``weights``, ``None`` for all alike."""
    if census.weights and not broken:
        return census
    arrival = [Arrival.BROKEN if worker in broken else word for worker, word in enumerate(census.arrival)]
    own = [1.0] * len(arrival) if weights is None else weights
    counting = [float(one) if word is Arrival.ARRIVED else 0.0 for one, word in zip(own, arrival, strict=True)]
    return replace(census, arrival=arrival, weights=counting)
