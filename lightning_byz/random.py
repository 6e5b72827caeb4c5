"""Randomness is an argument: every draw is keyed by a seed and by words that say what it is for."""

import random as python_random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def derive(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed for the draw that ``key`` names; the same on every machine and in every process.

    Args:
        seed: The run's seed.
        key: Whole numbers and words, e.g. ``("step", epoch, batch, worker)``.

    """
    text = "\x1f".join([f"{'str' if isinstance(word, str) else 'int'}:{word}" for word in (seed, *key)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the draw that ``key`` names."""
    return torch.Generator(device=device).manual_seed(derive(seed, *key))


def by_block(
    source: torch.Generator, start: int, bounds: Sequence[tuple[int, int]], width: int
) -> Iterator[tuple[int, int, torch.Generator]]:
    """Each block of coordinates with a generator of its own, so that a slice draws the numbers that the whole would.

    Args:
        source: What every draw follows from; one number is taken from it. In the same state wherever a slice is held.
        start: Where the slice begins among all coordinates, a multiple of ``width``.
        bounds: ``(low, high)`` of each of its blocks, counted from there.
        width: Coordinates per block.

    """
    base = int(torch.randint(2**62, (), generator=source, device=source.device))
    for low, high in bounds:
        yield low, high, generator(base, "block", (start + low) // width, device=source.device)


def distinct(count: int, total: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` different numbers below ``total``, every such set as likely; no temporary of ``total`` where ``count`` is below half of it."""
    if 2 * count >= total:
        return torch.randperm(total, generator=generator, device=generator.device)[:count]
    chosen = torch.empty(0, dtype=torch.int64, device=generator.device)
    while len(chosen) < count:
        more = torch.randint(total, (count - len(chosen),), generator=generator, device=generator.device)
        chosen = torch.cat([chosen, more]).unique()
    return chosen


class Streams:
    """The global random streams of torch, numpy and python, exchanged for a keyed one and put back.

    A user's ``training_step`` and ``__getitem__`` draw from the global streams. Inside :meth:`inside` these depend on the key
    alone, so a worker draws the same numbers wherever it runs; outside nothing has changed.

    Args:
        device: Where the training step runs; its stream is exchanged beside the CPU's.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: tuple | None = None

    @contextmanager
    def together(self) -> Iterator[Callable[..., None]]:
        """Yield what seeds the streams from ``(seed, *key)``, as often as it is called in the block; put them back after it."""
        outside = self._capture()
        try:
            yield self._enter
        finally:
            self._restore(outside)

    @contextmanager
    def inside(self, seed: int, *key: int | str, remember: bool = False) -> Iterator[None]:
        """Seed the streams from ``(seed, *key)`` for the length of the block; ``remember`` where they end, for :meth:`again`."""
        outside = self._capture()
        self._enter(seed, *key)
        try:
            yield
        finally:
            self._last = self._capture() if remember else self._last
            self._restore(outside)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Go on in the streams where the last remembered :meth:`inside`, or :meth:`again`, left them; do nothing before the first."""
        if self._last is None:
            yield
            return
        outside = self._capture()
        self._restore(self._last)
        try:
            yield
        finally:
            self._last = self._capture()
            self._restore(outside)

    def _enter(self, seed: int, *key: int | str) -> None:
        value = derive(seed, *key)
        torch.default_generator.manual_seed(value)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(value)
        np.random.seed(value % 2**32)  # noqa: NPY002 - users' code draws from this stream
        python_random.seed(value)

    def _capture(self) -> tuple:
        accelerator = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return torch.default_generator.get_state(), accelerator, np.random.get_state(), python_random.getstate()  # noqa: NPY002

    def _restore(self, state: tuple) -> None:
        cpu, accelerator, numpy_state, python_state = state
        torch.default_generator.set_state(cpu)
        if accelerator is not None:
            torch.cuda.set_rng_state(accelerator, self._device)
        np.random.set_state(numpy_state)  # noqa: NPY002
        python_random.setstate(python_state)
