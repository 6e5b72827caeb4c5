"""The server's end of one worker: a thread that receives its messages, one at a time, and sends it parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from time import monotonic

import numpy as np

from lightning_byz.serving.common import SLICE, Common, Message, Published
from lightning_byz.serving.door import LOST
from lightning_byz.serving.messages import notes_of, vector_of


class Line(ABC):
    """One worker, and the thread that serves it.

    Args:
        worker: The worker.
        common: What all lines share.

    """

    def __init__(self, worker: int, common: Common) -> None:
        self.worker = worker
        self.orders: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self.memories: SimpleQueue[bytes | None] = SimpleQueue()
        self.silent = self.gone = self.ready = False
        self._common = common
        self._heard = monotonic()
        self._thread = Thread(target=self._run, name=f"worker {worker}", daemon=True)

    def start(self) -> None:
        """Serve the worker."""
        self._thread.start()

    def end(self) -> None:
        """Have the thread end."""
        self.gone = True
        self.orders.put(("stop", False))
        self.hang_up()

    def close(self) -> None:
        """End the line, and wait for the thread."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(self._common.deadline + 1.0)

    @property
    def held(self) -> tuple[int, ...]:
        """Descriptors that a forked process must close."""
        return ()

    @abstractmethod
    def hang_up(self) -> None:
        """End what holds up the thread."""

    @abstractmethod
    def _serve(self) -> None:
        """Serve the worker until it is gone; raise one of ``LOST`` where it is lost."""

    @abstractmethod
    def _ask(self) -> None:
        """Ask the worker what it remembers."""

    @abstractmethod
    def _left(self) -> None:
        """Clear up at the end."""

    def _run(self) -> None:
        why = "the connection ended"
        try:
            self._serve()
        except LOST as error:
            why = str(error) or why
        finally:
            self._left()
            if not (self.gone or self._common.closing):
                self.gone = True
                self._common.say(self.worker, "lost", why)
            self.memories.put(None)

    # ------------------------------------------------------------------ what all lines have in common

    def _same(self, what: str, own: int, theirs: int) -> bool:
        """Whether the worker runs what the server runs."""
        if own != theirs:
            self._common.say(self.worker, "differs", what)
        return own == theirs

    def _quiet(self) -> None:
        """Notice that nothing has come."""
        if not self.silent and monotonic() - self._heard > self._common.deadline:
            self.silent = True
            self._common.say(self.worker, "silent", "")

    def _spoke(self) -> None:
        """Notice that something has come."""
        self._heard = monotonic()
        if self.silent:
            self.silent = False
            self._common.say(self.worker, "back", "")

    def _announced(self) -> None:
        """Notice that the worker has a message."""
        if not self.ready:
            self.ready = True
            self._common.say(self.worker, "ready", "")

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Hold one of the places for messages, as soon as one is free."""
        while not self._common.receiving.acquire(timeout=SLICE):
            self._do(self.orders.get() if not self.orders.empty() else ("", False))
        try:
            yield
        finally:
            self._common.receiving.release()

    @contextmanager
    def _point(self) -> Iterator[Published]:
        """Hold the parameters as they are now, while they are sent."""
        while not self._common.sending.acquire(timeout=SLICE):
            self._do(("", False))
        try:
            point = self._common.published
            assert point is not None
            yield point
        finally:
            self._common.sending.release()
        self._heard = monotonic()

    def _read(self, data: memoryview, *, version: int, turn: int, loss: float) -> Message | None:
        """Return a message from its bytes; ``None``, and a count, for what is none."""
        sizes, current = self._common.sizes, self._common.published
        assert current is not None
        if len(data) < sizes.message or not 0 <= version <= current.version or turn < 0:
            self._malformed()
            return None
        vector, tail, notes = data[: sizes.vector], data[sizes.vector : sizes.message], data[sizes.message :]
        count = len(sizes.layout.names)
        used = [bool(flag) for flag in tail[:count]]
        buffers = np.frombuffer(tail, np.float64, sizes.buffers, count).copy()
        row = vector_of(vector, sizes.layout.dtype)
        return Message(self.worker, version, turn, row, used, buffers, loss, notes_of(bytes(notes)))

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

    def _malformed(self) -> None:
        with self._common.lock:
            self._common.malformed += 1
