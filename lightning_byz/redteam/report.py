"""What a search leaves: a table of all that was tried, the config of the worst, and what it says on the screen."""

import csv
import io
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lightning_byz.compare.records import Folder, write_whole
from lightning_byz.compare.summaries import Spread
from lightning_byz.compare.tables import told
from lightning_byz.redteam.plan import Plan
from lightning_byz.redteam.trials import Trial, beside, of_fixed, worst

HEADER = [
    "trial",
    "purpose",
    "attack",
    "config",
    "attackers",
    "n",
    "metric",
    "standard_error",
    "difference",
    "failure",
    "runs",
]


def write_report(plan: Plan, trials: Sequence[Trial], folder: Folder) -> None:
    """Write the table, and the config of the worst attack where there is one."""
    write_whole(folder.path / "trials.csv", table(plan, trials))
    found = worst(trials, plan.mode)
    if found is not None:
        config = (folder.path / "cells" / f"{found.cells[0].id}.yaml").read_text()
        write_whole(folder.path / "worst.yaml", f"{heading(plan, found)}{config}")


def heading(plan: Plan, found: Trial) -> str:
    """Return the comment above the config of the worst attack."""
    seeds = ", ".join(f"{cell.seed}" for cell in found.cells)
    lines = [
        f"Trial {found.attempt.number} of {plan.config}: {found.attempt.title}; {plan.metric} {found.said}, seeds {seeds}.",
        f"OMP_NUM_THREADS=1 lightning-byz fit --config {plan.output / 'worst.yaml'}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def table(plan: Plan, trials: Sequence[Trial]) -> str:
    """Return one line per attack, in the order of the search."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([plan.metric if name == "metric" else name for name in HEADER])
    for trial in trials:
        attempt, score = trial.attempt, trial.score
        attackers = " ".join(map(str, sorted(plan.attackers[: attempt.attackers])))
        apart = difference(trial, beside(trials, trial))
        found = (
            [score.n, *(_known(one) for one in (score.mean, score.error, apart.mean))] if score.n else [0, "", "", ""]
        )
        name, config = attempt.title.rpartition(" by ")[0] or attempt.title, json.dumps(attempt.attack)
        runs = " ".join(cell.id for cell in trial.cells)
        writer.writerow(
            [attempt.number, attempt.purpose, name, config, attackers, *found, (*trial.failures, "")[0], runs]
        )
    return file.getvalue()


def difference(trial: Trial, other: Trial | None) -> Spread:
    """Return the mean of the differences from another's runs of equal seeds; of nothing where a run of either failed."""
    if other is None or trial.failures or other.failures:
        return Spread.of([])
    return Spread.of([mine - its for mine, its in zip(trial.scores, other.scores, strict=True)])


def say(plan: Plan, trials: Sequence[Trial], console: Console) -> None:
    """Print what was found."""
    fixed, found = worst(of_fixed(trials), plan.mode), worst(trials, plan.mode)
    failed = [trial for trial in trials if trial.failures and not trial.stopped]
    if failed:
        first = f"{failed[0].attempt.title}: {failed[0].failures[0][:200]}"
        print(f"{len(failed)} of {len(trials)} trials failed, and are taken for no harm; {first}")
    if found is None:
        return
    honest = beside(trials, found)
    shown = Table("", "attack", plan.metric, "difference", box=None, pad_edge=False)
    for name, trial in (("without", honest), ("best fixed", fixed), ("worst found", found)):
        if trial is not None:
            apart = "" if trial is honest else told(difference(trial, honest), signed=True).removesuffix("-")
            shown.add_row(name, trial.attempt.title, trial.said, apart)
    console.print(shown, markup=False, highlight=False)
    print(verdict(plan, found, fixed))
    print(f"again: OMP_NUM_THREADS=1 lightning-byz fit --config {plan.output / 'worst.yaml'}")


def verdict(plan: Plan, found: Trial, fixed: Trial | None) -> str:
    """Return how much worse the worst is than the best fixed attack."""
    stops = f" It ends the run: {found.failures[0]}" if found.stopped else ""
    if found is fixed:
        return f"No attack that was searched hurts more than the fixed {found.attempt.title}.{stops}"
    if fixed is None:
        return f"{found.attempt.title} is the worst found; no fixed attack finished.{stops}"
    apart = "" if stops else f", by {told(difference(found, fixed), signed=True)} of {plan.metric}"
    return f"{found.attempt.title} hurts more than the best fixed attack, {fixed.attempt.title}{apart}.{stops}"


def _known(value: float) -> float | str:
    return "" if value != value else value
