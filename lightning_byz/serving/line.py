"""The server's end of one worker: a thread that receives its messages, one at a time, and sends it parameters."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from time import monotonic

import numpy as np

from lightning_byz.serving.common import SLICE, Common, Message
from lightning_byz.serving.door import LOST, hang_up, set_patience
from lightning_byz.serving.frames import TEXT, Header, Kind, receive, receive_header, text_of
from lightning_byz.serving.messages import notes_of, vector_of


class Line:
    """One worker's connection, and the thread that serves it.

    Args:
        worker: The worker.
        connection: The connection, whose other end has shown the worker's key.
        common: What all lines share.

    """

    def __init__(self, worker: int, connection: Connection, common: Common) -> None:
        self.worker = worker
        self.connection = connection
        self.orders: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self.memories: SimpleQueue[bytes | None] = SimpleQueue()
        self.silent = self.gone = self.ready = False
        self._common = common
        self._heard = monotonic()
        self._thread = Thread(target=self._run, name=f"worker {worker}", daemon=True)

    def start(self) -> None:
        """Serve the worker."""
        set_patience(self.connection, self._common.deadline)
        self._thread.start()

    def close(self) -> None:
        """End the connection, and wait for the thread."""
        self.gone = True
        self.orders.put(("stop", False))
        hang_up(self.connection)
        if self._thread.is_alive():
            self._thread.join(self._common.deadline + 1.0)

    def _run(self) -> None:
        why = "the connection ended"
        try:
            if self._greeted():
                self._send_point(accepted=False)
                while self._turn():
                    pass
        except LOST as error:
            why = str(error) or why
        finally:
            with suppress(OSError):
                self.connection.close()
            if not (self.gone or self._common.closing):
                self.gone = True
                self._common.say(self.worker, "lost", why)
            self.memories.put(None)

    def _greeted(self) -> bool:
        """Whether the worker runs what the server runs."""
        header = self._header()
        if header is None or header.kind is not Kind.HELLO:
            return False
        mine = self._common.digests
        for own, theirs, what in zip(mine, (header.first, header.second), ("module", "library"), strict=True):
            if own != theirs:
                self._common.say(self.worker, "differs", what)
                return False
        self._common.say(self.worker, "came", "")
        return True

    def _turn(self) -> bool:
        """Receive one thing; whether to go on."""
        header = self._header()
        if header is None:
            return not self.gone
        if header.kind is Kind.ERROR:
            self._common.say(self.worker, "error", text_of(self.connection.recv_bytes(TEXT)))
            self.gone = True
            return False
        if header.kind is not Kind.GRADIENT:
            self._malformed()
            return True
        if not self.ready:
            self.ready = True
            self._common.say(self.worker, "ready", "")
        with self._room():
            self.connection.send_bytes(Header(Kind.GO, self.worker).packed())
            message = self._message(header)
            if message is None:
                return True
            self._common.inbox.put(message)
            del message
            accepted = self._answered()
        self._send_point(accepted=accepted)
        return True

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Hold one of the places for messages, as soon as one is free."""
        while not self._common.receiving.acquire(timeout=SLICE):
            self._do(self.orders.get() if not self.orders.empty() else ("", False))
        try:
            yield
        finally:
            self._common.receiving.release()

    def _header(self) -> Header | None:
        """Return the next header, however long that takes; ``None`` for a frame that is none, or at the end."""
        while not self.connection.poll(SLICE):
            if self.gone:
                return None
            if not self.silent and monotonic() - self._heard > self._common.deadline:
                self.silent = True
                self._common.say(self.worker, "silent", "")
        try:
            header = receive_header(self.connection)
        except OSError:
            if not self.connection.readable:  # the frame was longer than a header
                self._malformed()
            raise
        self._heard = monotonic()
        if header is None or header.worker != self.worker:
            self._malformed()
            return None
        if self.silent:
            self.silent = False
            self._common.say(self.worker, "back", "")
        return header

    def _message(self, header: Header) -> Message | None:
        sizes = self._common.sizes
        data = memoryview(self.connection.recv_bytes(sizes.message + TEXT))
        current = self._common.published
        assert current is not None
        if len(data) < sizes.message or not 0 <= header.first <= current.version or header.second < 0:
            self._malformed()
            return None
        vector, tail, notes = data[: sizes.vector], data[sizes.vector : sizes.message], data[sizes.message :]
        count = len(sizes.layout.names)
        used = [bool(flag) for flag in tail[:count]]
        buffers = np.frombuffer(tail, np.float64, sizes.buffers, count).copy()
        row = vector_of(vector, sizes.layout.dtype)
        return Message(self.worker, *header[3:5], row, used, buffers, header.value, notes_of(bytes(notes)))

    def _answered(self) -> bool:
        """Do as the server says until it has looked at the message; whether it accepted it."""
        while True:
            order, accepted = self.orders.get()
            if order == "answer":
                return accepted
            self._do((order, accepted))

    def _do(self, order: tuple[str, bool]) -> None:
        """Do what the server asks for while the worker waits."""
        if order[0] == "stop" or self.gone:
            raise EOFError("the run ended")
        if order[0] == "ask":
            self._ask()

    def _ask(self) -> None:
        """Ask the worker what it remembers."""
        self.connection.send_bytes(Header(Kind.ASK, self.worker).packed())
        header = receive_header(self.connection)
        known = header is not None and header.kind is Kind.MEMORY
        self.memories.put(receive(self.connection, self._common.sizes.memory) if known else None)

    def _send_point(self, *, accepted: bool) -> None:
        """Send the parameters as they are now."""
        while not self._common.sending.acquire(timeout=SLICE):
            self._do(("", False))
        try:
            point = self._common.published
            assert point is not None
            about = (point.version, point.epoch, point.step)
            self.connection.send_bytes(Header(Kind.POINT, self.worker, accepted, *about).packed())
            self.connection.send_bytes(point.data)
        finally:
            self._common.sending.release()
        self._heard = monotonic()

    def _malformed(self) -> None:
        with self._common.lock:
            self._common.malformed += 1
