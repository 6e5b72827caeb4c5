"""The server's end of a worker that is an actor of Ray: it calls one turn at a time."""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from re import search
from threading import Event
from time import monotonic
from typing import Any

import numpy as np

from lightning_byz.serving.common import SLICE, Common
from lightning_byz.serving.engine import Seat
from lightning_byz.serving.frames import TEXT
from lightning_byz.serving.line import Line


class RayLine(Line):
    """One actor, and the thread that calls it.

    Args:
        ray: The library.
        actor: The actor.
        jobs: What workers compute, as an object of Ray.
        seat: What the worker starts from.
        common: What all lines share.
        known: Takes the id of the actor's process.
        ended: Takes how the actor has ended.

    """

    def __init__(
        self,
        ray: Any,
        actor: Any,
        jobs: Any,
        seat: Seat,
        common: Common,
        *,
        known: Callable[[int], None],
        ended: Callable[[str], None],
    ) -> None:
        super().__init__(seat.worker, common)
        self._ray = ray
        self._actor = actor
        self._jobs = jobs
        self._seat = seat
        self._known = known
        self._ended = ended
        self._begun = False
        self._stopped = Event()

    def hang_up(self) -> None:
        """Wait for no answer any more."""
        self._stopped.set()

    def _serve(self) -> None:
        errors = self._ray.exceptions
        while not self.gone:
            try:
                if self._begun or self._greeted():
                    self._take_turns()
                elif not self.gone:
                    self._gone("was ended")
                return
            except errors.ActorUnavailableError:
                self._unreachable()
            except errors.RayActorError as error:
                self._gone(how_ended(error))
                return
            except errors.RayTaskError as error:
                self._failed(str(error)[-TEXT:])
                return
            except (errors.RayError, TimeoutError) as error:
                self._lost(error)

    def _greeted(self) -> bool:
        """Whether the worker is ready, and runs what the server runs."""
        greeting, seat = self._get(self._actor.greet.remote()), self._seat
        if not _numbers(greeting, 2):
            self._malformed()
            return False
        self._known(greeting[1])
        if not self._same("library", self._common.digests[1], greeting[0]):
            return False
        told = self._get(self._actor.begin.remote(self._jobs, seat.worker, seat.sizes, seat.remembered, seat.turn))
        if isinstance(told, str):
            self._failed(told)
            return False
        if not self._same("module", self._common.digests[0], told):
            return False
        self._common.say(self.worker, "came", "")
        self._begun, self._heard = True, monotonic()
        return True

    def _take_turns(self) -> None:
        """Have the worker take turns until it is gone."""
        accepted = False
        while not self.gone:
            with self._point() as point:
                data, version = np.frombuffer(point.data, np.uint8), point.version
                announced = self._actor.turn.remote(accepted, point.epoch, point.step, data)
            told, accepted = self._get(announced), False
            if isinstance(told, str):
                self._failed(told)
                return
            if not (isinstance(told, tuple) and len(told) == 2 and type(told[0]) is int and type(told[1]) is float):
                self._malformed()
                continue
            self._announced()
            with self._room():
                accepted = self._delivered(version, *told)

    def _delivered(self, version: int, turn: int, loss: float) -> bool:
        """Hand over a message; whether it was accepted."""
        data = self._get(self._actor.message.remote(), self._common.deadline)
        known = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1
        if not known or data.size > self._common.sizes.message + TEXT:
            self._malformed()
            return False
        message = self._read(memoryview(data.data), version=version, turn=turn, loss=loss if isfinite(loss) else np.nan)
        del data
        if message is None:
            return False
        self._common.inbox.put(message)
        del message
        return self._answered()

    def _ask(self) -> None:
        """Ask the worker what it remembers."""
        data = self._get(self._actor.memory.remote(), self._common.deadline)
        whole = isinstance(data, bytes) and len(data) == self._common.sizes.memory
        self.memories.put(data if whole else None)

    def _get(self, answer: Any, patience: float | None = None) -> Any:
        """Return what the actor answers, however long that takes.

        Raises:
            TimeoutError: If it takes longer than the patience.
            EOFError: If the run ends before.

        """
        began = monotonic()
        while not self._ray.wait([answer], timeout=SLICE)[0]:
            if self._stopped.is_set():
                raise EOFError("the run ended")
            if self._begun:  # importing takes as long as it takes
                self._quiet()
            if patience is not None and monotonic() - began > patience:
                raise TimeoutError(f"no answer in {patience:g} s")
        found = self._ray.get(answer)
        self._spoke()
        return found

    def _lost(self, error: Exception) -> None:
        """Try again: what was under way is lost."""
        self._common.say(self.worker, "lost", str(error))
        self._stopped.wait(SLICE)

    def _unreachable(self) -> None:
        """Try again: the worker may be gone, which Ray finds out later, or come back."""
        if not self.silent:
            self.silent = True
            self._common.say(self.worker, "unreachable", "")
        self._stopped.wait(SLICE)

    def _failed(self, text: str) -> None:
        """End with the worker's error."""
        self._common.say(self.worker, "error", text)
        self._gone("has ended with an error")

    def _gone(self, how: str) -> None:
        self.gone = True
        self._ended(how)

    def _left(self) -> None:
        with suppress(Exception):
            self._ray.kill(self._actor)


def how_ended(error: Exception) -> str:
    """Return how an actor has ended, from what Ray says of it.

    Example:
        >>> how_ended(RuntimeError("The actor is dead because its node has died. Node Id: 7"))
        'has ended with its node'

    """
    text = str(error)
    if "node has died" in text or "node was terminated" in text:
        return "has ended with its node"
    if "creation task" in text:
        return f"could not start: {text[-1000:]}"
    found = search(r"Worker exit detail: (.+?)(?:\. |$)", text)
    return f"has ended: {found[1]}" if found else f"has ended: {text[:300]}"


def _numbers(told: object, count: int) -> bool:
    return isinstance(told, tuple) and len(told) == count and all(type(one) is int for one in told)
