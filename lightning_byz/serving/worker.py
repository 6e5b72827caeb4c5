"""A worker's life: fetch parameters, compute, send, and begin again, at its own pace."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_byz.rounds.checks import estimated
from lightning_byz.serving.door import knock, set_patience
from lightning_byz.serving.engine import Seat
from lightning_byz.serving.frames import SIZE, Header, Kind, bytes_of, header_of
from lightning_byz.serving.messages import Remembered, Sizes, memory_of, packed_memory, packed_notes, raw, vector_of

WEEK = 7 * 86400.0
"""Seconds that a worker waits for the server, which may be validating; it does not outlive it."""
FRUITLESS = 1000
"""Turns in a row without a loss after which a worker gives up."""


class Computed(NamedTuple):
    """What a turn has left.

    Args:
        gradients: Flat (d,), one per point that the estimator asks for, the visible one first.
        used: For each parameter whether the turn used it.
        buffers: The module's buffers after it.
        loss: Of its batch.
        logged: What the turn logged, by name: a number, and flags.

    """

    gradients: Sequence[Tensor]
    used: Sequence[bool]
    buffers: np.ndarray
    loss: float
    logged: Mapping[str, Sequence[Any]]


class Job(ABC):
    """What a worker computes. It travels to its process when that starts."""

    digests: tuple[int, int]
    """Of the module and the libraries that it runs."""

    @abstractmethod
    def begin(self, turn: int) -> None:
        """Get ready, in the worker's process, to take this turn."""

    @abstractmethod
    def compute(
        self, turn: int, point: Tensor, earlier: Tensor | None, *, epoch: int, step: int, points: int
    ) -> Computed | None:
        """Return what a turn leaves at a point (d,); ``None`` where it has no loss.

        Args:
            turn: The turn's number, which keys its draws.
            point: The parameters.
            earlier: Where the second gradient is asked for.
            epoch: The Trainer's.
            step: Likewise.
            points: How many gradients are asked for.

        """

    @abstractmethod
    def settle(self, *, accepted: bool) -> None:
        """Keep what the turn has changed of the buffers, or forget it."""


def work(job: Job, seat: Seat) -> int:
    """Be a worker until the server is gone; return an exit code."""
    blank = Remembered(seat.sizes.blank())
    worker = _Worker(job, seat, blank if seat.remembered is None else memory_of(seat.remembered, seat.sizes))
    try:
        job.begin(seat.turn)
    except Exception:
        worker.error = traceback.format_exc()
    until = monotonic() + seat.deadline
    while monotonic() < until:
        try:
            connection = knock(seat.address, seat.worker, seat.key, patience=seat.deadline)
        except OSError:
            sleep(0.1)
            continue
        try:
            worker.serve(connection)
        except (OSError, EOFError):
            pass
        finally:
            connection.close()
        if worker.error is not None:
            return 1
        until = monotonic() + seat.deadline
    return 0


class _Worker:
    def __init__(self, job: Job, seat: Seat, remembered: Remembered) -> None:
        self._job = job
        self._seat = seat
        self._turn = seat.turn
        self._remembered = remembered
        self.error: str | None = None

    @property
    def _sizes(self) -> Sizes:
        return self._seat.sizes

    def serve(self, connection: Connection) -> None:
        """Take turns for as long as the connection holds."""
        set_patience(connection, WEEK)
        self._send(connection, Kind.HELLO, first=self._job.digests[0], second=self._job.digests[1])
        try:
            header = self._expected(connection, Kind.POINT)
        except EOFError:
            self.error = self.error or "The server has not taken it."
            return
        while True:
            point = vector_of(connection.recv_bytes(self._sizes.vector), self._sizes.layout.dtype)
            try:
                if self.error is not None:
                    raise RuntimeError(self.error)
                computed, proposed = self._computed(header, point)
            except Exception as error:
                self.error = self.error or "".join(traceback.format_exception(error))
                self._send(connection, Kind.ERROR)
                connection.send_bytes(bytes_of(self.error))
                return
            turn, self._turn = self._turn, self._turn + 1
            accepted = False
            try:
                header = self._deliver(connection, header, turn, computed)
                accepted = header.flag
            finally:
                self._job.settle(accepted=accepted)
            self._remembered = proposed if accepted else self._remembered

    def _computed(self, header: Header, point: Tensor) -> tuple[Computed, Remembered]:
        """Take a turn; the message lies in the first gradient's place."""
        memory, adopted, earlier = self._remembered
        estimator = self._sizes.estimator
        for _ in range(FRUITLESS):
            about = {"epoch": header.second, "step": header.third, "points": estimator.points}
            computed = self._job.compute(self._turn, point, earlier, **about)
            if computed is not None:
                message, left = estimated(estimator, memory, computed.gradients, count=adopted)
                here = point if estimator.points > 1 else None
                return computed._replace(gradients=[message]), Remembered(left, adopted + 1, here)
            self._turn += 1
        raise RuntimeError(
            f"training_step returned no loss in {FRUITLESS} turns in a row of worker {self._seat.worker}."
        )

    def _deliver(self, connection: Connection, fetched: Header, turn: int, computed: Computed) -> Header:
        """Send a message; return the header of the next parameters."""
        self._send(connection, Kind.GRADIENT, first=fetched.first, second=turn, value=computed.loss)
        self._expected(connection, Kind.GO)
        message, used = raw(computed.gradients[0]), np.array(computed.used, np.uint8)
        buffers, notes = computed.buffers.astype(np.float64), packed_notes(computed.logged)
        connection.send_bytes(b"".join([message.data, used.data, buffers.data.cast("B"), notes]))
        return self._expected(connection, Kind.POINT)

    def _expected(self, connection: Connection, kind: Kind) -> Header:
        """Wait for a header of this kind; tell what is remembered whenever the server asks."""
        while True:
            header = header_of(connection.recv_bytes(SIZE))
            if header is None or header.kind not in (kind, Kind.ASK):
                raise OSError("The server has sent something else than was expected.")
            if header.kind is kind:
                return header
            data = packed_memory(self._remembered, self._sizes)
            self._send(connection, Kind.MEMORY)
            connection.send_bytes(data)

    def _send(self, connection: Connection, kind: Kind, **values: Any) -> None:
        connection.send_bytes(Header(kind, self._seat.worker, **values).packed())
