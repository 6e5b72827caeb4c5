"""The command ``lightning-byz redteam``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_byz.compare.options import SentenceParser, kept
from lightning_byz.compare.records import Folder
from lightning_byz.compare.yaml_file import GridMistake
from lightning_byz.errors import TooManyFaults
from lightning_byz.redteam.plan import Plan, planned
from lightning_byz.redteam.report import say, write_report
from lightning_byz.redteam.trials import Trial

EXAMPLE = "lightning-byz redteam --config configs/quickstart.yaml --budget 40"
METRIC, STOPPED = "val_accuracy", TooManyFaults.__name__


def main(args: Sequence[str]) -> None:
    """Run the command with these arguments.

    Raises:
        SystemExit: With status 2 if the config or the arguments are wrong, 1 if the disk is full or no run has finished, 130 if stopped by Ctrl-C.
    """
    try:
        _run(_options(args))
    except GridMistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def _options(args: Sequence[str]) -> argparse.Namespace:
    words = "Search the attack, and its strength, that hurt a run most; see docs/redteam.md."
    parser = SentenceParser("lightning-byz redteam", description=words, allow_abbrev=False)
    parser.add_argument("--config", metavar="FIT", help="the config of a fit with RobustStrategy")
    parser.add_argument("--budget", type=int, help="how many attacks are tried, the fixed ones included")
    parser.add_argument(
        "--attackers", type=int, metavar="M", help="how many may attack at most; by default the run's f"
    )
    parser.add_argument("--metric", help=f"what the module logs in validation; {METRIC} if not given")
    parser.add_argument("--mode", help="max where more of the metric is better for the user, or min")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the runs of each attack; the config's if not given")
    parser.add_argument("--output", type=Path, help="the folder of the results; runs/redteam/ and the config's name")
    parser.add_argument(
        "--processes", type=int, default=1, help="how many runs at the same time; 0 for the command's own"
    )
    parser.add_argument("--retry", action="store_true", help="make failed runs again")
    told = parser.parse_args(list(args))
    if told.config is None:
        raise GridMistake(f"no config is given: name its file with --config, such as {EXAMPLE}.")
    if told.budget is None:
        raise GridMistake(f"no budget is given: say how many attacks to try, such as {EXAMPLE}.")
    if told.mode not in (None, "max", "min"):
        raise GridMistake(f"mode={told.mode}: give max where more of the metric is better, or min.")
    if told.metric not in (None, METRIC) and told.mode is None:
        raise GridMistake(
            f"metric={told.metric} without a mode: give --mode max where more of it is better, or --mode min."
        )
    if told.processes < 0:
        raise GridMistake(f"processes={told.processes}: give 1 or more, or 0 for the command's own.")
    if told.seeds and (min(told.seeds) < 0 or max(told.seeds) >= 2**32 or len(set(told.seeds)) < len(told.seeds)):
        raise GridMistake(
            f"seeds={told.seeds}: give different whole numbers from 0 to below 2**32, such as --seeds 1 2 3."
        )
    return told


def _run(told: argparse.Namespace) -> None:
    config = Path(told.config)
    asked = Plan(
        config=config,
        budget=told.budget,
        output=told.output or Path("runs") / "redteam" / config.stem,
        metric=told.metric or METRIC,
        mode=told.mode or "max",
        seeds=tuple(told.seeds or ()),
        processes=told.processes,
    )
    plan = planned(asked, told.attackers)
    try:
        from lightning_byz.redteam.search import claimed, searched
    except ImportError as missing:
        if (missing.name or "").split(".")[0] != "optuna":
            raise
        raise GridMistake(
            "redteam searches with optuna, which is not installed: pip install 'lightning-byz[redteam]'."
        ) from None
    folder, trials = Folder(plan.output), list[Trial]()
    with folder.locked(), kept(folder, plan.runs):
        plan = claimed(plan, folder)
        if told.retry:
            folder.forget(one.id for one in folder.records().values() if one.failure and one.error != STOPPED)
        try:
            for trial in searched(plan, folder):
                trials.append(trial)
        finally:
            if trials:
                write_report(plan, trials, folder)
    if trials[0].failures:
        sys.exit(
            f"error: the run without attack failed: {trials[0].failures[0].removesuffix('.')}. No attack was tried: see "
            f"{plan.output / 'logs'}, and give the same command with --retry when this is mended."
        )
    say(plan, trials, Console())
    if all(trial.failures for trial in trials if trial.attempt.attack):
        sys.exit(f"error: no attack has finished; {plan.output / 'trials.csv'} says why.")
    print(f"{plan.output}: trials.csv, worst.yaml")
