"""The command ``lightning-byz``: Lightning's command line with this package's classes known by their bare names."""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_byz import aggregators, attacks, callbacks, data, demos, estimators, exchange, preaggregators, strategies
from lightning_byz.errors import ToleranceError, TooManyFaults

_FAMILIES = (aggregators, attacks, callbacks, data, demos, estimators, exchange, preaggregators, strategies)
_CLASS = r"Problem with given class_path '(?:[\w.]+\.)?(?P<name>\w+)':\s+"
_MISTAKES = (
    (
        _CLASS + r"Option '(?P<given>[^']+)' is not accepted",
        "{name} has no argument '{given}': see --print_config for those of the classes in use.",
    ),
    (_CLASS + r"the following arguments are required: (?P<given>[^\n]+)", "{name} needs a value for: {given}."),
    (
        _CLASS + r"(?P<given>No module named [^\n]+|module [^\n]+ has no attribute [^\n]+)",
        "there is no class {name}: {given}.",
    ),
    (r"Import path (?P<given>\S+) does not correspond to a subclass of (?P<name>\w+)", "{given} is no {name}."),
    (
        r'Parser key "(?P<name>\w+)":\s+Expected a <class \'(?P<kind>\w+)\'>. Got value: (?P<given>[^\n]+)',
        "{name}={given}: give one of type {kind}.",
    ),
)


class Parser(LightningArgumentParser):
    """A parser that answers a mistake with its sentence, instead of the list of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong, and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {explain(message)}\n")


class CommandLine(LightningCLI):
    """LightningCLI which ends a fit with the metrics of its last epoch."""

    def after_fit(self) -> None:
        """Print the metrics as they stand after the last epoch, which is not always the best one."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if metrics:
            rank_zero_only(print)(
                "last epoch:", ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
            )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; classes in the current directory's files can be named in it.

    Args:
        args: The arguments, by default those of the process.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, 1 if the run they describe was refused or stopped by this package.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        CommandLine(
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},  # a misspelt option must not pass as another one
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=None if args is None else list(args),
        )
    except Exception as error:
        if sentence := refusal(error):
            sys.exit(f"error: {sentence}")
        raise


def explain(message: str) -> str:
    r"""Return the parser's message as one sentence, where it wraps the mistake in all that it tried.

    Example:
        >>> explain("Problem with given class_path 'lightning_byz.RobustStrategy':\n  Option 'ff' is not accepted")
        "RobustStrategy has no argument 'ff': see --print_config for those of the classes in use."
        >>> explain("- Expected a dot import path string: CoordinateMedain")
        "there is no class 'CoordinateMedain': did you mean CoordinateMedian?"
    """
    for pattern, sentence in _MISTAKES:
        if found := re.search(pattern, message):
            return sentence.format_map(found.groupdict())
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        known = [name for family in _FAMILIES for name in family.__all__]
        close = _closest(found[1], known)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else "give the import path of a class, such as my_file.MyClass, or a name of this package."
        )
        return f"there is no class {found[1]!r}: {hint}"
    return message


def _closest(given: str, known: Sequence[str]) -> list[str]:
    """Return the known names that are nearly as close as the closest one, if any is close."""
    likeness = {name: difflib.SequenceMatcher(None, given, name).ratio() for name in known}
    best = max(likeness.values())
    return sorted((name for name in known if likeness[name] >= max(0.5, best - 0.1)), key=lambda name: -likeness[name])[
        :3
    ]


def refusal(error: Exception) -> str | None:
    """Return the sentence of an error that speaks to the user; ``None`` for a fault in somebody's code, which needs its traceback.

    Example:
        >>> refusal(ToleranceError("f = 4 of 8 workers"))
        'f = 4 of 8 workers'
        >>> refusal(ZeroDivisionError())
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    origin = frames[-1].f_globals.get("__name__", "").split(".")[0] if frames else ""
    if origin == "jsonargparse":  # it hands on what a constructor raised as the last line of its own list
        return re.findall(r"\s- (.*)", str(error))[-1] if re.search(r"\s- ", str(error)) else str(error)
    ours = (
        ToleranceError,
        TooManyFaults,
        MisconfigurationException,
        *([ValueError] if origin == "lightning_byz" else []),
    )
    return str(error) if isinstance(error, ours) else None
