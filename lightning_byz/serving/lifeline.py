"""Processes that do not outlive the one that has started them."""

import os
import signal
import sys
from ctypes import CDLL
from multiprocessing.connection import Connection
from threading import Thread

_DEATH_SIGNAL = 1


def end_with_parent(read: Connection, write: Connection | None, parent: int) -> None:
    """End this process as soon as the one that holds the other end of a pipe is gone, also where this one is stopped (on Linux).

    Ctrl-C reaches all processes of a terminal: it is left to the one that has started this one.

    Args:
        read: The end of the pipe that is read; nothing is ever written to it.
        write: The other end, where this process has inherited it.
        parent: The id of the process that has started this one.

    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if write is not None:
        write.close()
    if sys.platform == "linux":
        CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    Thread(target=_wait, args=(read,), daemon=True).start()


def _wait(read: Connection) -> None:
    read.poll(None)
    os._exit(1)
