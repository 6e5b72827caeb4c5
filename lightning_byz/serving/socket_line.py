"""The server's end of a worker that has come through the door."""

from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic

from lightning_byz.serving.common import SLICE, Common, Message
from lightning_byz.serving.door import hang_up, set_patience
from lightning_byz.serving.frames import TEXT, Header, Kind, receive, receive_header, text_of
from lightning_byz.serving.line import Line


class SocketLine(Line):
    """One worker's connection, and the thread that serves it.

    Args:
        worker: The worker.
        connection: The connection, whose other end has shown the worker's key.
        common: What all lines share.

    """

    def __init__(self, worker: int, connection: Connection, common: Common) -> None:
        super().__init__(worker, common)
        self.connection = connection

    def start(self) -> None:
        """Serve the worker."""
        set_patience(self.connection, self._common.deadline)
        super().start()

    @property
    def held(self) -> tuple[int, ...]:
        """Descriptors that a forked process must close."""
        return () if self.gone else (self.connection.fileno(),)

    def hang_up(self) -> None:
        """End the connection."""
        hang_up(self.connection)

    def _serve(self) -> None:
        if self._greeted():
            self._send_point(accepted=False)
            while self._turn():
                pass

    def _left(self) -> None:
        with suppress(OSError):
            self.connection.close()

    def _greeted(self) -> bool:
        """Whether the worker runs what the server runs."""
        header = self._header()
        if header is None or header.kind is not Kind.HELLO:
            return False
        mine = self._common.digests
        for own, theirs, what in zip(mine, (header.first, header.second), ("module", "library"), strict=True):
            if not self._same(what, own, theirs):
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
        self._announced()
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

    def _header(self) -> Header | None:
        """Return the next header, however long that takes; ``None`` for a frame that is none, or at the end."""
        while not self.connection.poll(SLICE):
            if self.gone:
                return None
            self._quiet()
        try:
            header = receive_header(self.connection)
        except OSError:
            if not self.connection.readable:  # the frame was longer than a header
                self._malformed()
            raise
        if header is None or header.worker != self.worker:
            self._heard = monotonic()
            self._malformed()
            return None
        self._spoke()
        return header

    def _message(self, header: Header) -> Message | None:
        data = memoryview(self.connection.recv_bytes(self._common.sizes.message + TEXT))
        return self._read(data, version=header.first, turn=header.second, loss=header.value)

    def _ask(self) -> None:
        """Ask the worker what it remembers."""
        self.connection.send_bytes(Header(Kind.ASK, self.worker).packed())
        header = receive_header(self.connection)
        known = header is not None and header.kind is Kind.MEMORY
        self.memories.put(receive(self.connection, self._common.sizes.memory) if known else None)

    def _send_point(self, *, accepted: bool) -> None:
        """Send the parameters as they are now."""
        with self._point() as point:
            about = (point.version, point.epoch, point.step)
            self.connection.send_bytes(Header(Kind.POINT, self.worker, accepted, *about).packed())
            self.connection.send_bytes(point.data)
