"""The life of a worker that is a process of the server's machine: fetch parameters, compute, send, and begin again, at its own pace."""

import traceback
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any

from lightning_byz.serving.door import knock, set_patience
from lightning_byz.serving.engine import Seat
from lightning_byz.serving.frames import SIZE, Header, Kind, bytes_of, header_of
from lightning_byz.serving.job import Computed, Job
from lightning_byz.serving.messages import Sizes, vector_of
from lightning_byz.serving.turns import Turns, message_bytes

WEEK = 7 * 86400.0
"""Seconds that a worker waits for the server, which may be validating; it does not outlive it."""


def work(job: Job, seat: Seat) -> int:
    """Be a worker until the server is gone; return an exit code."""
    assert seat.address is not None
    worker = _Worker(job, seat)
    try:
        worker.turns.begin()
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
    def __init__(self, job: Job, seat: Seat) -> None:
        self._job = job
        self._seat = seat
        self.turns = Turns(job, seat.worker, seat.sizes, seat.remembered, seat.turn)
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
                turn, computed = self.turns.take(point, epoch=header.second, step=header.third)
            except Exception as error:
                self.error = self.error or "".join(traceback.format_exception(error))
                self._send(connection, Kind.ERROR)
                connection.send_bytes(bytes_of(self.error))
                return
            accepted = False
            try:
                header = self._deliver(connection, header, turn, computed)
                accepted = header.flag
            finally:
                self.turns.settle(accepted=accepted)

    def _deliver(self, connection: Connection, fetched: Header, turn: int, computed: Computed) -> Header:
        """Send a message; return the header of the next parameters."""
        self._send(connection, Kind.GRADIENT, first=fetched.first, second=turn, value=computed.loss)
        self._expected(connection, Kind.GO)
        connection.send_bytes(message_bytes(computed))
        return self._expected(connection, Kind.POINT)

    def _expected(self, connection: Connection, kind: Kind) -> Header:
        """Wait for a header of this kind; tell what is remembered whenever the server asks."""
        while True:
            header = header_of(connection.recv_bytes(SIZE))
            if header is None or header.kind not in (kind, Kind.ASK):
                raise OSError("The server has sent something else than was expected.")
            if header.kind is kind:
                return header
            data = self.turns.memory()
            self._send(connection, Kind.MEMORY)
            connection.send_bytes(data)

    def _send(self, connection: Connection, kind: Kind, **values: Any) -> None:
        connection.send_bytes(Header(kind, self._seat.worker, **values).packed())
