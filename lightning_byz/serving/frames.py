"""What travels between a worker and the server: headers of one fixed size, and after them frames whose sizes both ends know."""

import struct
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import NamedTuple

MAGIC = b"LBZ1"
TEXT = 16_384
"""The longest text, in bytes: what a worker logs, or the error that ends it."""

_HEADER = struct.Struct("<4sBBHqqqd")


class Kind(IntEnum):
    """What a header announces."""

    HELLO = 1
    """From a worker: digests of its module (``first``) and of its libraries (``second``). Nothing follows."""
    POINT = 2
    """To a worker: the number of updates (``first``), epoch and step of the Trainer, whether its message was accepted. Its parameters follow."""
    GRADIENT = 3
    """From a worker: the number of updates at its point (``first``), its turn (``second``). Its message follows, in one frame, once it may go on."""
    ASK = 4
    """To a worker: what it remembers is asked for. Nothing follows."""
    MEMORY = 5
    """From a worker: what it remembers follows."""
    ERROR = 6
    """From a worker: the text of the error that ends it follows."""
    GO = 7
    """To a worker: there is room for the message that it has announced."""


class Header(NamedTuple):
    """The first frame of everything that is sent.

    Args:
        kind: What it is.
        worker: Whom it is from, or to.
        flag: Whether the last message was accepted.
        first: As its kind says.
        second: Likewise.
        third: Likewise.
        value: The loss of a gradient's batch.

    """

    kind: Kind
    worker: int = 0
    flag: bool = False
    first: int = 0
    second: int = 0
    third: int = 0
    value: float = 0.0

    def packed(self) -> bytes:
        """Return its bytes.

        Example:
            >>> header_of(Header(Kind.GO, worker=3).packed())
            Header(kind=<Kind.GO: 7>, worker=3, flag=False, first=0, second=0, third=0, value=0.0)

        """
        return _HEADER.pack(MAGIC, self.kind, self.flag, self.worker, self.first, self.second, self.third, self.value)


SIZE = _HEADER.size


def header_of(data: bytes) -> Header | None:
    """Return the header that some bytes are; ``None`` for bytes that are none.

    Example:
        >>> header_of(b"anything else") is None
        True

    """
    if len(data) != SIZE:
        return None
    magic, kind, flag, worker, first, second, third, value = _HEADER.unpack(data)
    if magic != MAGIC or kind not in list(Kind) or flag > 1:
        return None
    return Header(Kind(kind), worker, bool(flag), first, second, third, value)


def receive_header(connection: Connection) -> Header | None:
    """Return the next header; ``None`` for a frame that is none. A frame that is longer ends the connection.

    Raises:
        OSError: If the frame is longer than a header.
        EOFError: If the other end is gone.

    """
    return header_of(connection.recv_bytes(SIZE))


def receive(connection: Connection, size: int) -> bytes | None:
    """Return a frame of this size; ``None`` for a shorter one. A longer one ends the connection."""
    data = connection.recv_bytes(size)
    return data if len(data) == size else None


def text_of(data: bytes) -> str:
    """Return a text that the other end has sent, whatever its bytes are."""
    return data[:TEXT].decode("utf-8", "replace")


def bytes_of(text: str) -> bytes:
    """Return what is sent of a text: no more than may travel, of a longer one the end, where the error stands."""
    return text.encode("utf-8", "replace")[-TEXT:]
