"""How far a comparison is, and how long it has to go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Meter:
    """Tells how many runs are done: by a bar on a terminal, by a line each elsewhere.

    Args:
        total: How many there will be.
        done: How many were there at the start.
        progress: The bar; ``None`` where there is none.
    """

    def __init__(self, total: int, done: int, progress: Progress | None) -> None:
        self._start, self._first, self._done, self._total = time.monotonic(), done, done, total
        self._progress = progress
        self._task = progress.add_task("", total=total, completed=done, left="") if progress else None

    def expect(self, total: int) -> None:
        """There will be so many in all."""
        self._total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def step(self, title: str, failure: str = "") -> None:
        """One more is done; why it failed, if it did."""
        self._done += 1
        left, said = self.left(), f"{title} failed: {failure}" if failure else title
        if self._progress is not None and self._task is not None:
            if failure:
                self._progress.console.print(said, markup=False, highlight=False)
            self._progress.update(self._task, completed=self._done, left=left, description=title)
        else:
            print(f"{self._done} of {self._total} runs{', ' if left else ''}{left}: {said}", flush=True)

    def left(self) -> str:
        """Return the time that is left, from the runs of this command."""
        made = self._done - self._first
        seconds = (time.monotonic() - self._start) / max(made, 1) * (self._total - self._done)
        return f"{timedelta(seconds=round(seconds))} left" if self._done < self._total else ""


@contextmanager
def meter(total: int, done: int) -> Iterator[Meter]:
    """Show a bar for the length of the block, where there is a terminal."""
    console = Console()
    if not console.is_terminal:
        yield Meter(total, done, None)
        return
    words = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
    with Progress(*words, console=console) as progress:
        yield Meter(total, done, progress)
