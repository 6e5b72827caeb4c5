"""The server of a run: it hears all workers, and hands their messages over one at a time."""

from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic, sleep

from torch import Tensor

from lightning_byz.errors import TooManyFaults
from lightning_byz.serving.common import SLICE, Common, Message, Published
from lightning_byz.serving.door import Door
from lightning_byz.serving.engine import Engine, Seat
from lightning_byz.serving.events import FATAL, SAID, Event, refused
from lightning_byz.serving.line import Line
from lightning_byz.serving.messages import Remembered, Sizes, memory_of, raw
from lightning_byz.serving.socket_line import SocketLine

STEP = 0.01
"""Seconds between two looks at what has happened, at the start."""
LOOK = 0.1
"""Seconds between two looks at what has happened, later."""
START = 120.0
"""Seconds in which workers must have made their first message, at least."""


class Service:
    """Workers at their own pace, and a queue of what they send.

    Args:
        engine: Starts and ends the workers' processes.
        sizes: Of all that travels.
        digests: Of the server's module and libraries.
        deadline: Seconds of silence after which a worker is left out.
        restarts: How often a worker that has died is started again.
        tell: Takes what is worth a warning.

    """

    def __init__(
        self,
        engine: Engine,
        sizes: Sizes,
        digests: tuple[int, int],
        *,
        deadline: float,
        restarts: int,
        tell: Callable[[str], None],
    ) -> None:
        self.workers = engine.workers
        self._engine = engine
        self._sizes = sizes
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._common = Common(sizes, digests, deadline, lambda *told: self._events.put(Event(*told)))
        self._door = Door(engine.workers, self._connected) if engine.knocks else None
        self._lines: dict[int, Line] = {}
        self._lock = Lock()
        self._left = dict.fromkeys(range(engine.workers), restarts)
        self._turns: Callable[[int], int] = lambda _: 0
        self._tell = tell
        self._held: dict[int, Line] = {}
        self._dead: set[int] = set()
        self._starting = True
        self._looked = 0.0
        self.words: dict[int, str] = {}
        """What has last happened to each worker."""
        self.events: list[tuple[float, Event]] = []
        """Everything that has happened to workers, and when."""

    @property
    def strangers(self) -> int:
        """Connections that have shown no worker's key."""
        return 0 if self._door is None else self._door.strangers

    @property
    def malformed(self) -> int:
        """Frames that were none of those expected."""
        return self._common.malformed

    @property
    def address(self) -> tuple[str, int] | None:
        """Where workers connect, if they do."""
        return None if self._door is None else self._door.address

    def open(self, remembered: Mapping[int, bytes], turns: Callable[[int], int]) -> None:
        """Start all workers, and wait until each has made a first message, or is gone or silent.

        Args:
            remembered: What workers remember of an earlier run.
            turns: Returns how many turns a worker has taken.

        Raises:
            RuntimeError: If a worker cannot do what it is asked to, or runs something else than the server.

        """
        self._turns = turns
        if self._door is not None:
            self._door.open()
        for worker in range(self.workers):
            self._begin(worker, remembered.get(worker))
        waiting, until = set(range(self.workers)), monotonic() + max(START, self._common.deadline)
        while waiting and monotonic() < until:
            sleep(STEP)
            for event in self._happened():
                if event.word in FATAL and (event.word != "ended" or event.worker in self._dead):
                    raise RuntimeError(refused(event))
                if event.word in ("ready", "silent"):
                    waiting.discard(event.worker)
        self._starting = False
        if waiting:
            self._tell(
                f"Workers {sorted(waiting)} have sent nothing yet, and the run starts without them; they may still come."
            )

    def next(self) -> Message | None:
        """Return the next message; ``None`` where none has come for a moment.

        Raises:
            TooManyFaults: If there is no worker left.

        """
        if monotonic() - self._looked > LOOK:
            self._happened()
        try:
            message = self._common.inbox.get(timeout=SLICE)
        except Empty:
            if len(self._dead) == self.workers:
                raise TooManyFaults(
                    "No worker is left: all their processes have ended. Look for the cause in the warnings above, or give restarts=."
                ) from None
            return None
        line = self._lines[message.worker]
        if line.gone:
            return None
        self._held[message.worker] = line
        return message

    def answer(self, worker: int, *, accepted: bool) -> None:
        """Let a worker go on, with the parameters that are published now."""
        line = self._held.pop(worker, None)
        if line is not None:
            line.orders.put(("answer", accepted))

    def publish(self, vector: Tensor, *, version: int, epoch: int, step: int) -> None:
        """Send these parameters (d,), to which nobody may write any more, from now on."""
        self._common.published = Published(version, epoch, step, raw(vector).data)

    def memories(self) -> dict[int, Remembered]:
        """Return what each worker remembers that tells within the deadline."""
        asked = [line for line in self._lines.values() if not (line.gone or line.silent)]
        for line in asked:
            while not line.memories.empty():  # what came too late for the last question
                line.memories.get()
            line.orders.put(("ask", False))
        found, until = {}, monotonic() + self._common.deadline
        for line in asked:
            try:
                data = line.memories.get(timeout=max(SLICE, until - monotonic()))
            except Empty:
                continue
            if data is not None:
                found[line.worker] = memory_of(data, self._sizes)
        return found

    def close(self) -> None:
        """End all workers and threads, whatever they do."""
        self._common.closing = True
        self._engine.close()
        for line in list(self._lines.values()):
            line.close()
        if self._door is not None:
            self._door.close()

    @property
    def away(self) -> list[int]:
        """The workers that are gone or silent."""
        return sorted({*self._dead, *(worker for worker, line in self._lines.items() if line.silent)})

    def _begin(self, worker: int, remembered: bytes | None) -> None:
        """Start a worker."""
        seat = self._seat(worker, remembered)
        self._engine.start(seat)
        line = self._engine.line(seat, self._common)
        if line is not None:
            self._serve(line)

    def _seat(self, worker: int, remembered: bytes | None) -> Seat:
        limits = self._common.deadline, self._sizes, self._common.digests, remembered, self._turns(worker)
        if self._door is None:
            return Seat(worker, None, b"", *limits, ())
        held = [self._door.fileno(), *(one for line in self._lines.values() for one in line.held)]
        return Seat(worker, self._door.address, self._door.keys[worker], *limits, tuple(held))

    def _connected(self, connection: Connection, worker: int) -> None:
        """Serve a worker on its new connection."""
        self._serve(SocketLine(worker, connection, self._common))

    def _serve(self, line: Line) -> None:
        """Serve a worker on its new line; an older one ends."""
        with self._lock:
            before = self._lines.get(line.worker)
            if self._common.closing:
                line.hang_up()
                return
            self._lines[line.worker] = line
        if before is not None:
            before.end()
        line.start()

    def _happened(self) -> list[Event]:
        """Return what has happened since the last call; say it, and start again who may be."""
        self._looked = monotonic()
        for worker, how in self._engine.ended().items():
            if worker not in self._dead:
                self._dead.add(worker)
                self._events.put(Event(worker, "ended", how))
        found = []
        while not self._events.empty():
            found.append(self._events.get())
            self._note(found[-1])
        return found

    def _note(self, event: Event) -> None:
        worker, word, text = event
        before = self.words.get(worker)
        self.events.append((monotonic(), event))
        fatal = word in FATAL and self._starting and self._left[worker] == 0
        if word in SAID and not fatal and not (word == "ended" and before in ("error", "differs")):
            self._tell(f"Worker {worker} {SAID[word].format(text, deadline=self._common.deadline)}")
        self.words[worker] = word if word not in ("ready", "lost") else before or word
        if word == "ended" and self._left[worker] > 0:
            self._left[worker] -= 1
            self._dead.discard(worker)
            self._begin(worker, None)
            self._events.put(Event(worker, "restarted", ""))
