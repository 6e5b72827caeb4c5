"""Which rows rules see, and what they remember beside them."""

import torch
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.memory import Memory
from lightning_byz.stack import Stack

REFERENCE = "reference"


def present(stack: Stack, census: Census) -> Stack:
    """Return the stack without the rows of absent workers."""
    away = census.workers(Arrival.ABSENT)
    if not away:
        return stack
    return stack.excluding(torch.tensor([worker in away for worker in range(len(census.arrival))]), faulty=False)


def reference_of(memory: Memory) -> Tensor | None:
    """Return the last aggregate that was stepped on, where rules read it."""
    return memory.rules[REFERENCE].values["aggregate"] if REFERENCE in memory.rules else None
