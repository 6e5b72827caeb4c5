"""The command ``lightning-byz``: Lightning's command line with this package's classes known by their bare names."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.mistakes import explain
from lightning_byz.rounds.seal import refuse_damaged
from lightning_byz.strategies.checkpoint_io import local_path


class Parser(LightningArgumentParser):
    """A parser that answers a mistake with its sentence, instead of the list of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong, and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {explain(message)}\n")


class SaveConfig(SaveConfigCallback):
    """Saves the config beside what the logger writes; without a logger there is no such place, and nothing is saved."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it where there is a logger."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class CommandLine(LightningCLI):
    """LightningCLI which ends a fit with the metrics of its last epoch, and keeps what a prediction made."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse them, and look at the checkpoint they name before Lightning takes hyperparameters from it."""
        super().parse_arguments(parser, args)
        refuse_missing_or_damaged(self.config[self.config.subcommand].get("ckpt_path"))

    def after_fit(self) -> None:
        """Print the metrics as they stand after the last epoch, which is not always the best one."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if metrics:
            rank_zero_only(print)(
                "last epoch:", ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
            )

    def predict(self, **kwargs: Any) -> None:
        """Predict, save what was predicted beside the log, and say what it is and where."""
        batches, folder = (
            self.trainer.predict(**kwargs),
            Path(self.trainer.log_dir or "."),
        )  # every rank asks for the folder
        callbacks = getattr(self.trainer, "callbacks", [])
        writers = [type(callback).__name__ for callback in callbacks if isinstance(callback, BasePredictionWriter)]
        if writers:
            rank_zero_only(print)(f"predictions: left to {', '.join(writers)}")
        elif not batches:
            print("predictions: none; predict_step returned none, or return_predictions is false")
        else:
            rank = f"-rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(batches, path := folder / f"predictions{rank}.pt")
            print(f"predictions: {counted(batches)}, saved to {path}")


def refuse_missing_or_damaged(checkpoint: str | Path | None) -> None:
    """Refuse a file that is not there, or not what was saved; words such as ``best``, folders and remote paths are Lightning's to judge."""
    words = checkpoint is None or re.fullmatch(r"best|last|hpc|(?i:registry)(:.*)?", str(checkpoint))
    path = None if checkpoint is None or words else local_path(checkpoint)
    if path is not None and not path.exists():
        raise FileNotFoundError(f"ckpt_path={checkpoint}: there is no such file.")
    if path is not None and path.is_file():
        refuse_damaged(path)


def counted(batches: list[Any]) -> str:
    """Return how many predictions there are, as far as they can be counted.

    Example:
        >>> counted([torch.zeros(16), torch.zeros(8)])
        '24 rows in 2 batches'
        >>> counted([{"label": 3}])
        '1 batch'
    """
    text = f"{len(batches)} batch{'es' * (len(batches) > 1)}"
    if all(isinstance(batch, torch.Tensor) and batch.ndim for batch in batches):
        text = f"{sum(len(batch) for batch in batches)} rows in {text}"
    return text


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; classes in the current directory's files can be named in it.

    Args:
        args: The arguments, by default those of the process.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, 1 if the run they describe was refused or stopped by this package.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    given = sys.argv[1:] if args is None else list(args)
    if given[:1] == ["compare"]:
        from lightning_byz.compare import main as compare  # its fits are command lines of this file

        compare(given[1:])
        return
    if given[:1] == ["redteam"]:
        from lightning_byz.redteam import main as redteam

        redteam(given[1:])
        return
    try:
        CommandLine(
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,  # a misspelt option must not pass as another one
                "epilog": "lightning-byz compare --help: a grid of fits, with tables, figures and a page. "
                "lightning-byz redteam --help: the attack that hurts a fit most.",
            },
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            args=None if args is None else list(args),
        )
    except Exception as error:
        if sentence := refusal(error):
            sys.exit(f"error: {sentence}")
        raise


def refusal(error: Exception) -> str | None:
    """Return the sentence of an error that speaks to the user; ``None`` for a fault in somebody's code, which needs its traceback.

    Example:
        >>> refusal(ToleranceError("f = 4 of 8 workers"))
        'f = 4 of 8 workers'
        >>> refusal(ZeroDivisionError())
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    origin, building = module.split(".")[0], any(f.f_code.co_name == "instantiate_trainer" for f in frames)
    if (
        origin == "jsonargparse"
    ):  # it hands on what a constructor raised as the last line of its own list, beside the types that it has tried
        lines = re.findall(r"\s- (?!Expected a <class|Does not validate)(.*)", str(error))
        return lines[-1] if lines else str(error)
    speaking = {
        "lightning_byz": (OSError, ValueError, TypeError),
        "lightning": (FileNotFoundError, ValueError, TypeError) if building else (FileNotFoundError,),
        "torch": (ValueError,) if module.startswith("torch.utils.data") else (),
    }
    ours = (ToleranceError, TooManyFaults, MisconfigurationException, *speaking.get(origin, ()))
    if not isinstance(error, ours):
        return None
    return explain(str(error)) if building else " ".join(str(error).split())
