"""Who hurts a run more with equally many fits: ``lightning-byz redteam``, or line searches of the catalogue's strengths at each step.

    python benchmarks/redteam.py
    python benchmarks/redteam.py --rules='[TrimmedMean]' --budget=18 --fresh=2 --output=part

A module and data of the package's demos: 12 workers whose data are unlike, of whom any 3 may attack. The red team searches as its command does. The
line searches are ``Optimized(ALIE)`` and ``Optimized(IPM)``, ByzFL's optimised attacks restated, with their own bounds, and once more with many
bounds and numbers of attackers to choose from by how the runs end, as the red team chooses: these have as many fits, and of these too the worst three
are tried again on new seeds. What was found is then judged by new runs with seeds that no search has seen, since the worst of many runs is partly
bad luck. A fit under ``Optimized`` tries 20 strengths on the defence at each step; only fits are counted, so the line searches work more. Killed, the
same command goes on.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from tables import console, markdown

from lightning_byz import TooManyFaults
from lightning_byz.attacks import ALIE, IPM, Optimized
from lightning_byz.compare.command import complete
from lightning_byz.compare.isolation import printing_to
from lightning_byz.compare.names import name_of
from lightning_byz.compare.processes import Processes
from lightning_byz.compare.records import Folder, Record
from lightning_byz.compare.summaries import Spread
from lightning_byz.redteam.plan import FINALISTS, Attack, Plan, planned
from lightning_byz.redteam.search import claimed, searched
from lightning_byz.redteam.space import written
from lightning_byz.redteam.trials import worst

METRIC, GUESS, WORKERS, ATTACKERS = "val_accuracy", 0.1, 12, 3
RULES: Mapping[str, Mapping[str, Any]] = {
    "CTMA(CoordinateMedian)": {"aggregator": {"class_path": "CTMA", "init_args": {"base": "CoordinateMedian"}}},
    "CoordinateMedian": {"aggregator": "CoordinateMedian"},
    "MeanAroundMedian": {"aggregator": "MeanAroundMedian"},
    "TrimmedMean": {"aggregator": "TrimmedMean"},
    "NNM -> GeometricMedian": {"aggregator": "GeometricMedian", "preaggregators": ["NNM"]},
    "Mean": {"aggregator": "Mean"},
}
HIGHS = (10.0, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 50.0, 100.0)
"""The largest strength of a line search; first ``Optimized``'s own."""


@dataclass(frozen=True)
class Choice:
    """What a search has found.

    Args:
        attack: As a config writes it.
        attackers: Their number.
    """

    attack: Attack
    attackers: int


@dataclass(frozen=True)
class Line:
    """One search of each way, under one rule.

    Args:
        rule: Its name.
        seed: Of the runs by which the searches choose.
        honest: Accuracies without attack, one per new seed.
        found: What the red team found, the line searches with bounds to choose from, and with their own bounds.
        again: Accuracies under these, one per new seed.
    """

    rule: str
    seed: int
    honest: Sequence[float]
    found: Sequence[Choice]
    again: Sequence[Sequence[float]]

    @property
    def parts(self) -> Sequence[float]:
        """Mean accuracies in percent without attack and under what was found, and how far the red team's is above the two others."""
        honest, mine, *its = (100 * statistics.fmean(one) for one in (self.honest, *self.again))
        return [honest, mine, *its, *(mine - one for one in its)]

    def cells(self) -> list[str]:
        """Return its line of the table."""
        red, other, _ = (f"`{name_of(one.attack)}` by {one.attackers}" for one in self.found)
        return [self.rule, f"{self.seed}", *(f"{one:.1f}" for one in self.parts), red, other]


def base(rule: str, *, epochs: int) -> dict[str, Any]:
    """Return the config of a fit under a rule."""
    strategy = {
        "workers": WORKERS,
        "f": ATTACKERS,
        "estimator": {"class_path": "WorkerMomentum", "init_args": {"beta": 0.9}},
        "partition": {"class_path": "Dirichlet", "init_args": {"alpha": 0.5}},
        **RULES[rule],
    }
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "strategy": {"class_path": "RobustStrategy", "init_args": strategy},
        },
        "model": {"class_path": "DigitsClassifier", "init_args": {"hidden": 32, "learning_rate": 1.0}},
        "data": {"class_path": "DigitsData", "init_args": {"batch_size": 24}},
    }


def line_searches(budget: int) -> Sequence[tuple[Attack, int]]:
    """Return as many line searches as the budget has: first with all attackers and the bounds that they have by themselves."""
    found = [
        (written(Optimized, {"attack": written(kind, {}), "low": min(0.1, high / 5), "high": high}), count)
        for count, high, kind in itertools.product(range(ATTACKERS, 0, -1), HIGHS, (ALIE, IPM))
    ]
    return found[:budget]


def red_team(plan: Plan) -> Choice:
    """Return what the command finds."""
    folder = Folder(plan.output)
    with folder.locked():
        found = worst(list(searched(claimed(plan, folder), folder)), plan.mode)
    assert found is not None
    assert found.attempt.attack is not None
    return Choice(found.attempt.attack, found.attempt.attackers)


def own_bounds(plan: Plan) -> Choice:
    """Return which of the two line searches with their own bounds ends worse."""
    folder = plan.output.with_name(f"{plan.output.name}-lines")
    return Choice(*_worst(replace(plan, output=folder), line_searches(2))[0])


def line_search(plan: Plan) -> Choice:
    """Return the line search that is worst on new seeds, among those whose runs end worst."""
    folder = plan.output.with_name(f"{plan.output.name}-lines")
    attacks = line_searches(plan.budget - FINALISTS * plan.rounds)
    best = _worst(replace(plan, output=folder), attacks)
    again = replace(plan.again, output=folder.with_name(f"{folder.name}-again"))
    return Choice(*(_worst(again, best[:FINALISTS]) if plan.rounds else best)[0])


def _worst(plan: Plan, attacks: Sequence[tuple[Attack, int]]) -> list[tuple[Attack, int]]:
    means = [statistics.fmean(scores) for scores in fitted(plan, attacks)]
    return [one for _, one in sorted(zip(means, attacks, strict=True), key=lambda pair: pair[0])]


def fitted(plan: Plan, attacks: Iterable[tuple[Attack | None, int]]) -> list[list[float]]:
    """Return for each attack where its runs end, one per seed; a run that leaves no model ends with a guess."""
    cells, folder = plan.cells({f"{place}": one for place, one in enumerate(attacks)}), Folder(plan.output)
    with folder.locked(), Processes(cells.grid.processes, cells.grid.threads) as processes:
        complete(cells, folder, processes)
    records = folder.records()
    return [[_accuracy(records[run.id]) for run in cells.compared(one, {})] for one in cells.variants]


def compared(rule: str, seed: int, *, budget: int, epochs: int, fresh: int, processes: int, output: Path) -> Line:
    """Search both ways, and judge what was found by new seeds."""
    folder = output / f"{rule.replace(' -> ', '-')}-{seed}"
    config = folder.with_suffix(".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(base(rule, epochs=epochs), sort_keys=False))
    asked = Plan(config, budget, folder, METRIC, "max", (seed,), processes)
    plan = planned(asked, None)
    found = (red_team(plan), line_search(plan), own_bounds(plan))
    new = replace(plan, seeds=tuple(range(100 * seed, 100 * seed + fresh)), output=output / f"{folder.name}-fresh")
    honest, *again = fitted(new, [(None, 0), *((one.attack, one.attackers) for one in found)])
    return Line(rule, seed, honest, found, again)


def page(lines: Sequence[Line]) -> str:
    """Return the tables: what was found, and per rule how the two compare."""
    numbers = ["no attack", "red team", "line search", "with its own bounds", "difference", "from its own bounds"]
    text = markdown(["rule", "seed", *numbers, "red team's", "line search's"], [line.cells() for line in lines]) + "\n"
    summary = []
    for rule in dict.fromkeys(line.rule for line in lines):
        parts = zip(*(line.parts for line in lines if line.rule == rule), strict=True)
        summary.append([rule, *(_percent(Spread.of(part)) for part in parts)])
    return text + markdown(["rule", *numbers], summary)


def _accuracy(record: Record) -> float:
    if record.failure and record.error != TooManyFaults.__name__:
        sys.exit(f"error: {record.failure}")
    accuracy = record.last(METRIC)
    return GUESS if accuracy is None or math.isnan(accuracy) else accuracy


def _percent(spread: Spread) -> str:
    error = "" if math.isnan(spread.error) else f" ± {spread.error:.1f}"
    return f"{spread.mean:.1f}{error}"


def main(
    *,
    rules: Sequence[str] = ("CTMA(CoordinateMedian)", "CoordinateMedian", "MeanAroundMedian"),
    seeds: Sequence[int] = (1, 2, 3),
    budget: int = 40,
    epochs: int = 5,
    fresh: int = 5,
    processes: int = 0,
    output: Path = Path("runs/redteam-benchmark"),
) -> None:
    """Search, judge, and print the tables.

    Args:
        rules: Names of rules.
        seeds: Of the searches.
        budget: Fits of each search.
        epochs: Of each fit.
        fresh: New seeds by which each search is judged.
        processes: Fits at the same time; 0 for this process, whose time is printed.
        output: The folder of the results.
    """
    start = time.perf_counter()
    lines = []
    for rule, seed in itertools.product(rules, seeds):
        with printing_to(output / f"log-{rule}-{seed}.txt"):
            line = compared(rule, seed, budget=budget, epochs=epochs, fresh=fresh, processes=processes, output=output)
        console().print(" | ".join(line.cells()), markup=False, highlight=False)
        lines.append(line)
    console().print(page(lines), markup=False, highlight=False)
    console().print(f"{time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
