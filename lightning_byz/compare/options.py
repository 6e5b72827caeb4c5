"""What commands over many runs share: how they answer a mistake, and how they end early."""

import argparse
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning_byz.compare.processes import FullDisk
from lightning_byz.compare.records import Folder, full_disk
from lightning_byz.compare.yaml_file import GridMistake
from lightning_byz.kinds import hint, listed


class SentenceParser(argparse.ArgumentParser):
    """A parser that answers a mistake with its sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with the option that was meant where one comes close."""
        if message.startswith("unrecognized arguments: "):
            given = message.partition(": ")[2].split()[0].partition("=")[0]
            if not given.startswith("-"):
                raise GridMistake(f"{given!r} is no option: give --config {given}.")
            options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            known = f"there are {listed(options)}."
            raise GridMistake(f"there is no option {given}: {hint(given, options) or known}")
        raise GridMistake(f"{message}; see {self.prog} --help.")


@contextmanager
def kept(folder: Folder, count: int, known: Container[str] | None = None) -> Iterator[None]:
    """Say what is safe, where the block ends before it is done: stopped, or for want of room.

    Args:
        folder: Where the runs are kept.
        count: How many there will be.
        known: Which of those that are kept are meant; all of them, if not given.
    """
    try:
        yield
    except (FullDisk, OSError, KeyboardInterrupt) as error:
        if not isinstance(error, (FullDisk, KeyboardInterrupt)) and not full_disk(error):
            raise
        paths = (folder.path / "records").glob("*.json")
        safe = sum(known is None or path.stem in known for path in paths)
        runs = f"{safe} of {count} runs are safe in {folder.path / 'records'}"
        if isinstance(error, KeyboardInterrupt):
            print(f"stopped: {runs}; the same command goes on from there.", file=sys.stderr)
            sys.exit(130)
        sys.exit(f"error: the disk is full: {runs}; make room and give the same command, which goes on from there.")
