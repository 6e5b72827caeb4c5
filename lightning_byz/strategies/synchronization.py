"""Whether gradients meet at the end of a backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager


class Synchronization:
    """A switch with DDP's ``no_sync()``. It refers to nothing, so that a module that carries it can be copied."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Leave gradients where they are, to accumulate, for the length of the block."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before
