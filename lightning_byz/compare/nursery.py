"""Where workers come from: a process that has imported what runs need, and forks, so that they start at once and share its memory."""

import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from signal import SIGKILL

from lightning_byz.compare.answer import WORKER
from lightning_byz.compare.isolation import without_ranks

FORKS = sys.platform == "linux"
"""Elsewhere libraries of the system do not survive a fork, and a process becomes the worker itself."""
SIZE = 8
"""Bytes of the number of a worker."""


class Nursery:
    """The other end of that process, ``compare/worker.py``, which is started when it is first needed, and again if it has died.

    Args:
        threads: Of torch, in each worker.
        forks: Whether its workers are forked; only one can be made otherwise.
    """

    def __init__(self, threads: int, *, forks: bool = FORKS) -> None:
        self._threads, self._forks, self._lock = threads, forks, threading.Lock()
        self._over = False
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def warm(self) -> None:
        """Start importing, and do not wait for it."""
        with self._lock:
            self._started()

    def worker(self) -> tuple[int, socket.socket]:
        """Return the number of a new worker, which leads a process group, and where it takes jobs.

        Raises:
            ConnectionError: If the process is ended meanwhile.
        """
        mine, theirs = socket.socketpair()
        with theirs, ExitStack() as failed:
            failed.enter_context(mine)
            try:
                number = self._ask(0, theirs.fileno())
            except ConnectionError:  # somebody has killed it
                number = self._ask(0, theirs.fileno())
            failed.pop_all()
            return number, mine

    def ended(self, worker: int) -> int:
        """Wait for the end of a worker; return its status, as ``subprocess`` counts, or that of a kill where nobody can tell any more."""
        if not self._forks and (running := self._running) is not None:
            status, self._running = running[0].wait(), None
            running[1].close()
            return status
        try:
            return self._ask(worker)
        except ConnectionError:
            return -SIGKILL

    def close(self) -> None:
        """End it, also while it starts; a worker goes on until its own socket is closed."""
        self._over = True
        if (running := self._running) is not None:
            running[0].kill()
            with self._lock:  # nobody listens any more
                self._forget()

    def _ask(self, word: int, *files: int) -> int:
        with self._lock:
            channel, told = self._started(), b""
            with suppress(ConnectionError):
                socket.send_fds(channel, [word.to_bytes(SIZE, "little")], files)
                told = channel.recv(SIZE, socket.MSG_WAITALL)
            if told:
                return int.from_bytes(told, "little", signed=True)
            self._forget()
        raise ConnectionError("the process that starts workers has died")

    def _started(self) -> socket.socket:
        if self._over:
            raise ConnectionError("the processes are being ended")
        if self._running is None:
            mine, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", WORKER, str(theirs.fileno()), "fork" if self._forks else "own"],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**without_ranks(), "OMP_NUM_THREADS": str(self._threads)},
                )
            self._running = process, mine
        return self._running[1]

    def _forget(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running[1].close()
            running[0].wait()
