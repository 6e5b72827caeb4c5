"""A worker's turns, however it hears from the server: what it computes, what it remembers, and what it sends."""

from typing import Any

import numpy as np
from torch import Tensor

from lightning_byz.rounds.checks import estimated
from lightning_byz.serving.job import Computed, Job
from lightning_byz.serving.messages import Remembered, Sizes, memory_of, packed_memory, packed_notes, raw

FRUITLESS = 1000
"""Turns in a row without a loss after which a worker gives up."""


class Turns:
    """The turns of one worker.

    Args:
        job: What it computes.
        worker: The worker.
        sizes: Of all that travels.
        remembered: What it remembers of an earlier run, as bytes; ``None`` for nothing.
        turn: How many turns it has taken.

    """

    def __init__(self, job: Job, worker: int, sizes: Sizes, remembered: bytes | None, turn: int) -> None:
        self._job = job
        self._worker = worker
        self._sizes = sizes
        self._next = turn
        self._remembered = Remembered(sizes.blank()) if remembered is None else memory_of(remembered, sizes)
        self._proposed = self._remembered

    def begin(self) -> None:
        """Get ready, in the worker's process."""
        self._job.begin(self._next)

    def take(self, point: Tensor, *, epoch: int, step: int) -> tuple[int, Computed]:
        """Take a turn at a point (d,); return its number, and what it leaves, with the message in the first gradient's place.

        Raises:
            RuntimeError: If no turn has a loss.

        """
        memory, adopted, earlier = self._remembered
        estimator = self._sizes.estimator
        about: dict[str, Any] = {"epoch": epoch, "step": step, "points": estimator.points}
        for _ in range(FRUITLESS):
            turn, computed = self._next, self._job.compute(self._next, point, earlier, **about)
            self._next += 1
            if computed is not None:
                message, left = estimated(estimator, memory, computed.gradients, count=adopted)
                self._proposed = Remembered(left, adopted + 1, point if estimator.points > 1 else None)
                return turn, Computed([message], *computed[1:])
        raise RuntimeError(f"training_step returned no loss in {FRUITLESS} turns in a row of worker {self._worker}.")

    def settle(self, *, accepted: bool) -> None:
        """Keep what the last turn has left, or forget it."""
        self._job.settle(accepted=accepted)
        self._remembered = self._proposed if accepted else self._remembered

    def memory(self) -> bytes:
        """Return what the worker remembers."""
        return packed_memory(self._remembered, self._sizes)


def message_bytes(computed: Computed) -> bytes:
    """Return what is sent of a turn: its message, which parameters it used, the buffers, and what it logged."""
    message, used = raw(computed.gradients[0]), np.array(computed.used, np.uint8)
    buffers, notes = computed.buffers.astype(np.float64), packed_notes(computed.logged)
    return b"".join([message.data, used.data, buffers.data.cast("B"), notes])
