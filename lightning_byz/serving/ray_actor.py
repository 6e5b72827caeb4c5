"""A worker that is an actor of Ray: it takes a turn whenever it is called."""

import os
import traceback
from collections.abc import Mapping

import numpy as np
import torch

from lightning_byz.serving.frames import TEXT
from lightning_byz.serving.job import Computed, Job
from lightning_byz.serving.libraries import libraries_digest
from lightning_byz.serving.messages import Sizes, vector_of
from lightning_byz.serving.turns import Turns, message_bytes


class Actor:
    """A worker.

    Args:
        threads: torch's threads.

    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._turns: Turns | None = None
        self._sizes: Sizes | None = None
        self._computed: Computed | None = None

    def greet(self) -> tuple[int, int]:
        """Return the digest of the versions of the libraries here, and the id of this process."""
        return libraries_digest(), os.getpid()

    def begin(
        self, jobs: Mapping[int, Job], worker: int, sizes: Sizes, remembered: bytes | None, turn: int
    ) -> int | str:
        """Get ready; return the digest of the module, or the error that ends this worker."""
        job = jobs[worker]
        try:
            self._turns, self._sizes = Turns(job, worker, sizes, remembered, turn), sizes
            self._turns.begin()
        except Exception:
            return _told()
        return job.digests[0]

    def turn(self, accepted: bool, epoch: int, step: int, point: np.ndarray) -> tuple[int, float] | str:
        """Take a turn at a point; return its number and its loss, or the error that ends this worker.

        Args:
            accepted: Whether the last message was.
            epoch: The Trainer's.
            step: Likewise.
            point: The parameters, as bytes.

        """
        assert self._turns is not None
        assert self._sizes is not None
        try:
            if self._computed is not None:
                self._computed = None
                self._turns.settle(accepted=accepted)
            vector = vector_of(point.data, self._sizes.layout.dtype)
            number, self._computed = self._turns.take(vector, epoch=epoch, step=step)
        except Exception:
            return _told()
        return number, self._computed.loss

    def message(self) -> np.ndarray:
        """Return what the last turn sends."""
        assert self._computed is not None
        return np.frombuffer(message_bytes(self._computed), np.uint8)

    def memory(self) -> bytes:
        """Return what the worker remembers."""
        assert self._turns is not None
        return self._turns.memory()


def _told() -> str:
    return traceback.format_exc()[-TEXT:]
