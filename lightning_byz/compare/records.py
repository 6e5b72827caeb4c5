"""The folder of a comparison: one file per finished run, whole or not there."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from lightning_byz.compare.yaml_file import GridMistake

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Evaluation:
    """What a run had logged when a validation ended, or the fit.

    Args:
        epoch: Epochs finished, this one included.
        step: Optimizer steps taken.
        seconds: Since the fit began.
        received: Bytes that came from other processes since then; ``None`` where the strategy does not say.
        metrics: Everything logged.
        messages: What the workers' messages since then take on a wire, in bytes; ``None`` where the strategy does not say.
    """

    epoch: int
    step: int
    seconds: float
    received: int | None
    metrics: Mapping[str, float]
    messages: int | None = None


@dataclass(frozen=True)
class Record:
    """What one run has left.

    Args:
        id: The run's.
        failure: Why it failed, in a sentence; "" where it finished.
        seconds: How long all of it took.
        evaluations: In order.
        test: What a test logged.
        versions: Of the packages that ran it.
        error: The name of the exception that ended it; "" where it finished, or its process died.
    """

    id: str
    failure: str = ""
    seconds: float = 0.0
    evaluations: Sequence[Evaluation] = ()
    test: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    def last(self, metric: str) -> float | None:
        """Return the metric as the last evaluation has it; ``None`` for a run that failed or did not log it."""
        return None if self.failure or not self.evaluations else self.evaluations[-1].metrics.get(metric)

    @property
    def bits(self) -> tuple[Any, ...]:
        """What must be alike when the run is repeated: everything but times, as text, in which NaN equals itself."""
        steps = [(one.epoch, one.step, one.received, repr(sorted(one.metrics.items()))) for one in self.evaluations]
        return (self.failure, steps, repr(sorted(self.test.items())))


class Folder:
    """Where the results of a comparison are.

    Args:
        path: The folder; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, record: Record) -> None:
        """Keep what a run has left."""
        write_whole(self.path / "records" / f"{record.id}.json", json.dumps(asdict(record), indent=1) + "\n")

    def records(self, ids: Iterable[str] | None = None) -> dict[str, Record]:
        """Return the kept runs, all or these, by their ids."""
        paths = self._paths() if ids is None else [self.path / "records" / f"{one}.json" for one in ids]
        return {path.stem: _read(path) for path in paths if path.is_file()}

    def forget(self, ids: Iterable[str]) -> None:
        """Drop these runs, so that they run again."""
        for one in ids:
            (self.path / "records" / f"{one}.json").unlink(missing_ok=True)

    def refuse_others(self, known: Mapping[str, Any]) -> None:
        """Refuse a folder that holds runs of another grid."""
        others = [path.stem for path in self._paths() if path.stem not in known]
        if others:
            raise GridMistake(
                f"{self.path} holds {len(others)} runs that are not in this grid, such as {others[0]}: "
                "give another output, or the grid as it was; axes and seeds may only grow."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder to oneself."""
        with self._opened() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GridMistake(
                    f"another command is running in {self.path}: wait for it, or give another output."
                ) from None
            for left in self.path.rglob(".*.partial"):
                left.unlink(missing_ok=True)
            yield

    def _opened(self) -> IO[str]:
        try:
            (self.path / "records").mkdir(parents=True, exist_ok=True)
            return (self.path / ".lock").open("w")
        except OSError as error:
            if full_disk(error):
                raise
            raise GridMistake(f"{self.path} cannot hold the results: {error}; give another output.") from None

    def _paths(self) -> list[Path]:
        return sorted((self.path / "records").glob("*.json"))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file at once: after a crash it is the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{uuid4().hex[:8]}.partial")
    try:
        with beside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that it followed from, says that there is no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _read(path: Path) -> Record:
    try:
        told = json.loads(path.read_text())
        return Record(**{**told, "evaluations": [Evaluation(**one) for one in told["evaluations"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise GridMistake(f"{path} is no record of a run ({error!r}): remove it, and the run is made again.") from None
