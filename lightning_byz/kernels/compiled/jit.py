"""Compilation by numba: of what a run uses, once per machine where there is somewhere to keep it."""

import fcntl
import hashlib
import inspect
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config

from lightning_byz.threads import spread

_SETTINGS: Any = config
_LOCK = threading.RLock()
_OPTIONS = {"nogil": True, "error_model": "numpy"}

if _SETTINGS.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call: it becomes part of each of them, which compiles faster than calls do."""
    return numba.njit(**_OPTIONS, inline="always")(inspect.unwrap(function))


class Kernel:
    """A function of ``low``, ``high``, ``room`` and more, without Python in it, which works on the coordinates from ``low`` to ``high``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._known = inspect.unwrap(function), set()
        self._compiled: Any = None

    def over(self, length: int, grain: int, room: Callable[[], tuple[Any, ...]], *arguments: Any) -> None:
        """Call it for all coordinates, in runs of whole grains, on as many threads as torch uses.

        Args:
            length: Coordinates.
            grain: Coordinates that a run is a multiple of.
            room: Makes memory that a run works in.
            arguments: What each run is told besides.
        """
        if not length:
            return
        kinds = _kind(arguments)
        if kinds not in self._known:
            self._compile(tuple(numba.typeof(argument) for argument in (0, length, room(), *arguments)))
            self._known.add(kinds)
        spread(lambda low, high: self._compiled(low, high, room(), *arguments), length, grain)

    def _compile(self, types: tuple[Any, ...]) -> None:
        try:
            with _LOCK, _alone():
                if self._compiled is None:
                    self._compiled = _cached(self._function)
                self._compiled.compile(types)
        except Exception as error:  # the place where it is kept is full or gone, or what is there is damaged
            place = store()
            if place is not None and not isinstance(error, OSError):
                shutil.rmtree(place, ignore_errors=True)
            self._compiled = numba.njit(**_OPTIONS)(self._function)
            self._compiled.compile(types)


def _kind(argument: Any) -> Any:
    """What tells types apart, where arrays are contiguous; numba's own answer takes as long as a small kernel."""
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    return (argument.dtype.num, argument.ndim) if isinstance(argument, np.ndarray) else type(argument)


def _cached(function: Callable[..., Any]) -> Any:
    """``function``, to be compiled, or loaded from where it is kept."""
    place = store()
    if place is None:
        return numba.njit(**_OPTIONS)(function)
    users, _SETTINGS.CACHE_DIR = _SETTINGS.CACHE_DIR, str(place)
    try:
        return numba.njit(**_OPTIONS, cache=True)(function)
    except RuntimeError:  # it can no longer be written to
        return numba.njit(**_OPTIONS)(function)
    finally:
        _SETTINGS.CACHE_DIR = users


@cache
def store() -> Path | None:
    """Where compiled kernels of exactly these sources are kept: beside them, else in the user's cache, else nowhere."""
    here = Path(__file__).parent
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = (
        [Path(_SETTINGS.CACHE_DIR)] if _SETTINGS.CACHE_DIR else [here / "__pycache__", Path(users, "lightning_byz")]
    )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()[:16]
    for place in places:
        with suppress(OSError):
            kept = place / f"kernels-{digest}"
            kept.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=kept):
                return kept
    return None


@contextmanager
def _alone() -> Iterator[None]:
    """Of processes that share a store one compiles at a time: the others then find what it made."""
    place = store()
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with nullcontext() if place is None else open(place / "compiling", "a") as lock:
        if lock is not None:
            with suppress(OSError):  # some file systems know no locks: then each compiles for itself
                fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if lock is not None:
                with suppress(OSError):  # closing is not enough if the process has been forked meanwhile
                    fcntl.flock(lock, fcntl.LOCK_UN)
