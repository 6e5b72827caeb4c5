"""Where workers connect: on this machine's loopback, each with a key of its own."""

import os
import socket
import struct
from collections.abc import Callable, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from threading import Lock, Semaphore, Thread

HOST = "127.0.0.1"
GREETED = 16
"""Connections, beyond one per worker, that may be about to say who they are."""
PATIENCE = 5.0
"""Seconds in which a connection must have said who it is."""

_ID = struct.Struct("<H")
LOST = (OSError, EOFError, AuthenticationError, AssertionError, ValueError)
"""What a connection raises whose other end is gone, stopped, or not what it should be."""


class Door:
    """Listens on a port of the loopback, and hands over connections whose other end has shown a worker's key.

    Args:
        workers: Number of workers.
        hand_over: Takes such a connection, and the id of the worker whose key it was.

    """

    def __init__(self, workers: int, hand_over: Callable[[Connection, int], None]) -> None:
        self.keys: Mapping[int, bytes] = {worker: os.urandom(32) for worker in range(workers)}
        self.strangers = 0
        """Connections that have shown no key."""
        self._hand_over = hand_over
        self._lock = Lock()
        self._greeted = Semaphore(workers + GREETED)
        self._socket = socket.create_server((HOST, 0), backlog=workers + GREETED)
        self._socket.settimeout(0.5)
        self._open = True
        self._thread = Thread(target=self._listen, name="door", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._socket.getsockname()

    def fileno(self) -> int:
        """Return the descriptor that a forked child must close."""
        return self._socket.fileno()

    def open(self) -> None:
        """Start to listen."""
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._open = False
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while self._open:
            try:
                came, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if self._greeted.acquire(blocking=False):
                Thread(target=self._greet, args=(came,), daemon=True).start()
            else:
                came.close()
                self._stranger()

    def _greet(self, came: socket.socket) -> None:
        connection, worker = connection_of(came, PATIENCE), -1
        try:
            worker = _ID.unpack(connection.recv_bytes(_ID.size))[0]
            deliver_challenge(connection, self.keys[worker])  # type: ignore[arg-type]
            answer_challenge(connection, self.keys[worker])  # type: ignore[arg-type]
        except (*LOST, KeyError, struct.error):
            connection.close()
            self._stranger()
        else:
            self._hand_over(connection, worker)
        finally:
            self._greeted.release()

    def _stranger(self) -> None:
        with self._lock:
            self.strangers += 1


def knock(address: tuple[str, int], worker: int, key: bytes, *, patience: float) -> Connection:
    """Return a worker's connection to the server, whose other end has shown the key too.

    Raises:
        OSError: If nobody listens, or somebody else.

    """
    connection = connection_of(socket.create_connection(address, timeout=patience), patience)
    try:
        connection.send_bytes(_ID.pack(worker))
        answer_challenge(connection, key)  # type: ignore[arg-type]
        deliver_challenge(connection, key)  # type: ignore[arg-type]
    except LOST as error:
        connection.close()
        raise ConnectionError(f"The server did not take worker {worker}: {error}.") from error
    return connection


def connection_of(came: socket.socket, patience: float) -> Connection:
    """Return a socket as a connection on which nothing blocks for longer than so many seconds."""
    came.setblocking(True)
    came.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit(came, patience)
    return Connection(came.detach())


def limit(held: socket.socket, patience: float) -> None:
    """Let reads and writes of a socket fail after so many seconds without progress."""
    span = struct.pack("@ll", int(patience), int(patience % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        held.setsockopt(socket.SOL_SOCKET, option, span)


def set_patience(connection: Connection, patience: float) -> None:
    """Change how long a connection blocks."""
    held = socket.socket(fileno=os.dup(connection.fileno()))
    try:
        limit(held, patience)
    finally:
        held.close()


def hang_up(connection: Connection) -> None:
    """End a connection at both ends, whoever else holds it, and whichever thread is reading it."""
    try:
        held = socket.socket(fileno=os.dup(connection.fileno()))
    except OSError:
        return
    try:
        held.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        held.close()
