"""What a worker's message and its memory are as bytes, whose number follows from the layout, the buffers and the estimator."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_byz.estimators import Estimator
from lightning_byz.flat import Layout
from lightning_byz.memory import Vectors
from lightning_byz.serving.frames import TEXT

MOST, LONGEST = 64, 128
"""Names that a worker may log in a turn, and characters of a name."""

POINT = "point"
"""The stage of a worker's memory that holds the parameters where its estimate was made."""


@dataclass(frozen=True)
class Sizes:
    """Of all that travels, known at both ends before anything does.

    Args:
        layout: Where parameters lie in a vector.
        buffers: Number of numbers in the module's buffers.
        estimator: What a worker sends instead of its raw gradient.

    """

    layout: Layout
    buffers: int
    estimator: Estimator

    @property
    def vector(self) -> int:
        """Bytes of a vector (d,)."""
        return self.layout.total * self.layout.dtype.itemsize

    @property
    def tail(self) -> int:
        """Bytes of what follows a gradient: a byte per parameter that says whether it was used, and the buffers."""
        return len(self.layout.names) + 8 * self.buffers

    @property
    def message(self) -> int:
        """Bytes of a gradient with its tail; after them comes what was logged, of any length up to that of a text."""
        return self.vector + self.tail

    @property
    def memory(self) -> int:
        """Bytes of what a worker remembers: a number of what it has adopted, its vectors, its point, its numbers."""
        blank = self.blank()
        vectors, numbers = _kinds(blank)
        widths = [torch.as_tensor(blank[name]).nbytes for name in vectors]
        return 8 + sum(widths) + self.vector * (self.estimator.points > 1) + 8 * len(numbers)

    def blank(self) -> Vectors:
        """Return what a worker remembers before its first turn."""
        return self.estimator.init(torch.zeros(self.layout.total, dtype=self.layout.dtype))


class Remembered(NamedTuple):
    """What a worker remembers.

    Args:
        memory: Its estimator's.
        adopted: How many of its estimates were.
        point: The parameters where the last of them was made, where the estimator asks for them; ``None`` before.

    """

    memory: Vectors
    adopted: int = 0
    point: Tensor | None = None


def packed_memory(remembered: Remembered, sizes: Sizes) -> bytes:
    """Return what a worker remembers as bytes."""
    memory, adopted, point = remembered
    vectors, numbers = _kinds(sizes.blank())
    parts = [np.array([adopted], np.int64).tobytes()]
    parts += [raw(torch.as_tensor(memory[name])).tobytes() for name in vectors]
    if sizes.estimator.points > 1:
        held = torch.full((sizes.layout.total,), torch.nan, dtype=sizes.layout.dtype) if point is None else point
        parts.append(raw(held).tobytes())
    parts.append(np.array([float(memory[name]) for name in numbers], np.float64).tobytes())
    return b"".join(parts)


def memory_of(data: bytes, sizes: Sizes) -> Remembered:
    """Return what a worker remembers from its bytes; numbers that are not finite make it an empty one."""
    blank, layout = sizes.blank(), sizes.layout
    vectors, numbers = _kinds(blank)
    adopted, place = int(np.frombuffer(data, np.int64, 1)[0]), 8
    kinds = {name: torch.as_tensor(blank[name]).dtype for name in vectors}
    kinds |= {POINT: layout.dtype} if sizes.estimator.points > 1 else {}
    read: dict[str, Any] = {}
    for name, dtype in kinds.items():
        stop = place + layout.total * dtype.itemsize
        read[name], place = vector_of(data[place:stop], dtype), stop
    told = np.frombuffer(data, np.float64, len(numbers), place).tolist()
    usable = all(bool(read[name].isfinite().all()) for name in vectors) and all(map(isfinite, told)) and adopted >= 0
    point = read.pop(POINT, None)
    if not usable:
        return Remembered(blank)
    point = None if point is None or not bool(point.isfinite().all()) else point
    read |= {name: _like(blank[name], number) for name, number in zip(numbers, told, strict=True)}
    return Remembered({name: read[name] for name in blank}, adopted, point)


def packed_notes(values: Mapping[str, Sequence[Any]]) -> bytes:
    """Return what a worker has logged, by name, as bytes; nothing where that is too long."""
    data = json.dumps(dict(list(values.items())[:MOST])).encode()
    return data if len(data) <= TEXT else b"{}"


def notes_of(data: bytes) -> dict[str, tuple[float, list[bool | None]]]:
    """Return what a worker says it has logged: a number and flags by name; nothing for bytes that say none of that.

    Example:
        >>> notes_of(b'{"loss": [0.5, true, null], "x": [[]]}'), notes_of(b"[")
        ({'loss': (0.5, [True, None])}, {})

    """
    try:
        told = json.loads(data, parse_int=float)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, tuple[float, list[bool | None]]] = {}
    for name, entry in list(told.items())[:MOST] if isinstance(told, dict) else ():
        number, *flags = entry if isinstance(entry, list) and entry else (None,)
        if isinstance(number, bool) or not isinstance(number, int | float) or len(name) > LONGEST or len(flags) > 4:
            continue
        if all(flag is None or isinstance(flag, bool) for flag in flags):
            found[name] = float(number), flags
    return found


def raw(vector: Tensor) -> np.ndarray:
    """Return the bytes of a vector on the CPU, sharing its memory."""
    return vector.detach().contiguous().view(torch.uint8).numpy()


def vector_of(data: bytes | memoryview, dtype: torch.dtype) -> Tensor:
    """Return the vector that these bytes are, in memory of its own."""
    vector = torch.empty(len(data) // dtype.itemsize, dtype=dtype)
    raw(vector)[:] = np.frombuffer(data, np.uint8)
    return vector


def _kinds(blank: Vectors) -> tuple[list[str], list[str]]:
    """The names of vectors, and those of numbers."""
    vectors = [name for name, value in blank.items() if isinstance(value, Tensor) and value.ndim]
    return vectors, [name for name in blank if name not in vectors]


def _like(blank: Any, number: float) -> Any:
    return torch.tensor(number, dtype=blank.dtype) if isinstance(blank, Tensor) else type(blank)(number)
