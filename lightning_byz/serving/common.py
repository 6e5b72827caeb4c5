"""What the server's threads share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock, Semaphore
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_byz.serving.messages import Sizes

SLOTS = 4
"""Messages that the server holds at most beside its table, and parameters that it is sending, of other updates than the last."""
SLICE = 0.1
"""Seconds after which a thread that waits looks around."""


@dataclass(eq=False)
class Message:
    """What a worker has sent of a turn.

    Args:
        worker: Whose it is.
        version: The number of updates at the point where it was computed.
        turn: Its turn.
        row: The message (d,).
        used: For each parameter whether the worker used it.
        buffers: The module's buffers after the turn.
        loss: Of its batch.
        logged: What it logged, by name: a number, and flags.

    """

    worker: int
    version: int
    turn: int
    row: Tensor
    used: list[bool]
    buffers: np.ndarray
    loss: float
    logged: dict[str, tuple[float, list[bool | None]]]


class Published(NamedTuple):
    """Parameters as they are sent: nobody writes to them.

    Args:
        version: The number of updates.
        epoch: The Trainer's.
        step: Likewise.
        data: Their bytes.

    """

    version: int
    epoch: int
    step: int
    data: Any


@dataclass(eq=False)
class Common:
    """What the lines of a server share.

    Args:
        sizes: Of all that travels.
        digests: Of the server's module and libraries.
        deadline: Seconds of silence after which a worker is left out, and without progress after which a transfer is broken off.
        say: Takes what happens to a worker, as a word and a text.

    """

    sizes: Sizes
    digests: tuple[int, int]
    deadline: float
    say: Callable[[int, str, str], None]
    inbox: SimpleQueue[Message] = field(default_factory=SimpleQueue)
    receiving: Semaphore = field(default_factory=lambda: Semaphore(SLOTS))
    sending: Semaphore = field(default_factory=lambda: Semaphore(SLOTS))
    lock: Lock = field(default_factory=Lock)
    published: Published | None = None
    malformed: int = 0
    """Frames that were none of those expected."""
    closing: bool = False
