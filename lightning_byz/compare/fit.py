"""One run: the fit that ``lightning-byz`` makes of its arguments, watched."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_byz.cli import CommandLine, Parser, refusal
from lightning_byz.compare.isolation import untouched
from lightning_byz.compare.recorder import Recorder
from lightning_byz.compare.records import Folder, Record, full_disk, write_whole
from lightning_byz.compare.wandb_runs import own_run
from lightning_byz.compare.yaml_file import GridMistake
from lightning_byz.mistakes import explain

PACKAGES = ("lightning-byz", "lightning", "torch", "numpy")


@dataclass(frozen=True)
class Job:
    """What a process must know of a run.

    Args:
        id: The run's.
        arguments: What follows ``lightning-byz``.
        output: The folder of the results.
        tests: Whether it ends with a test.
        threads: Of torch.
        alone: Whether the process is its own, so that a launcher may start others like it.
    """

    id: str
    arguments: Sequence[str]
    output: str
    tests: bool = False
    threads: int = 1
    alone: bool = False

    def told(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)


class SeveralRanks(Exception):
    """A run wants several processes, which a warm one cannot become."""


class _Asking(Parser):
    """A parser that raises what it would say."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the sentence."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise GridMistake(explain(message))


class _Fit(CommandLine):
    """The command ``fit`` with a recorder; it writes its whole config where it is told, and may stop there."""

    def __init__(
        self,
        arguments: Sequence[str],
        config: Path | None,
        recorder: Recorder,
        *,
        tests: bool = False,
        alone: bool = False,
        runs: bool = True,
    ) -> None:
        self._into, self._recorder, self._tests, self._alone, self._runs = config, recorder, tests, alone, runs
        sys.argv = sys.argv if alone else ["lightning-byz"]  # a launcher of ranks repeats them
        with suppress(_Parsed):
            super().__init__(
                parser_class=_Asking,
                parser_kwargs={"allow_abbrev": False},
                seed_everything_default=0,
                save_config_callback=None,
                args=list(arguments),
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only fit: a parser of one command is made three times as fast."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keep the parser, which can write a config as it reads one."""
        self._fit_parser = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and write what was read."""
        super().parse_arguments(parser, args)
        if self._runs and not self._alone and not _one_rank(self.config["fit"]["trainer"]):
            raise SeveralRanks
        if self._into is not None and _first_rank():
            write_whole(self._into, self._fit_parser.dump(self.config["fit"], skip_none=False))
        if not self._runs:
            raise _Parsed

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Let the recorder watch."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self._recorder)  # pyright: ignore[reportAttributeAccessIssue] - Lightning sets it elsewhere
        return trainer

    def after_fit(self) -> None:
        """Print the last metrics, and test where that is asked for."""
        super().after_fit()
        if self._tests:
            for told in self.trainer.test(self.model, datamodule=self.datamodule, verbose=False):
                self._recorder.test |= {name: float(value) for name, value in told.items()}


class _Parsed(Exception):
    """All that was asked for is known."""


def check(arguments: Sequence[str], config: Path | None = None) -> Namespace:
    """Parse the arguments of a fit, and no more; return what they say.

    Args:
        arguments: What follows ``lightning-byz``.
        config: Where the whole config is written, if anywhere.

    Raises:
        GridMistake: Saying what is wrong with them.
    """
    with untouched(1):
        _with_own_files()
        return _Fit(arguments, config, Recorder(), runs=False).config["fit"]


def perform(job: Job) -> Record:
    """Run a fit, and keep and return what it has left; a failure is kept in a sentence, and its traceback printed.

    Raises:
        SeveralRanks: If it must have a process of its own.
        SIGTERMException: If the process is told to end; nothing is kept then.
        OSError: If the disk is full; nothing is kept then.
    """
    output, start, failure, kind, recorder = Path(job.output), time.perf_counter(), "", "", Recorder()
    with untouched(job.threads):
        _with_own_files()
        try:
            with own_run():
                _Fit(job.arguments, output / "cells" / f"{job.id}.yaml", recorder, tests=job.tests, alone=job.alone)
        except (SeveralRanks, SIGTERMException):
            raise
        except (Exception, SystemExit) as error:
            if full_disk(error):
                raise
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
                raise KeyboardInterrupt from None
            traceback.print_exc()
            failure, kind = _sentence(error), type(error).__name__
        record = Record(
            id=job.id,
            failure=failure,
            seconds=time.perf_counter() - start,
            evaluations=recorder.evaluations,
            test=recorder.test,
            versions={"python": python_version(), **{name: version(name) for name in PACKAGES}},
            error=kind,
        )
    if _first_rank():
        Folder(output).save(record)
    return record


def _sentence(error: BaseException) -> str:
    """Return why a run failed, on one line."""
    said = refusal(error) if isinstance(error, Exception) else ""
    if isinstance(error, GridMistake):
        said = str(error)
    return said or f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _one_rank(trainer: Any) -> bool:
    """Whether the config's trainer is sure to stay in one process."""
    devices = trainer.devices
    alone = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return trainer.num_nodes == 1 and (alone or (devices == "auto" and trainer.accelerator == "cpu"))


def _first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _with_own_files() -> None:
    """Let classes in the current directory's files be named, as in a fit."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
