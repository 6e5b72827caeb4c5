"""Which rule ``strategy="robust"`` should be: accuracy on skewed and unequal data, attacked and not, and what each rule loses at worst.

    python benchmarks/default.py
    python benchmarks/default.py --seeds=2 --only='[Mean, GeometricMedian]' --output=part.md

The network, the digits and the 12 workers are those of ``benchmarks/price.py``; workers 8 and 11 attack, the heaviest where sizes are unequal. Rules
and attacks run in the package's own chain, so that memories, draws, weights, and what attackers see are those of a run through the Trainer. The
rules know nothing of the number of attackers but f: as many as each rule tolerates, which is what ``f="max"`` gives, and exactly as many.
"""

import re
import statistics
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from default_page import ATTACKERS, ATTACKS, PAGE, SETTINGS, Cell, Cells, Setting, header, page, ranked, rows, summary
from digits_training import PARTITIONS, WORKERS, Rules, processes_of_one_thread, right, train, weights_of
from images import read
from jsonargparse import auto_cli
from tables import console, table
from torch.utils.data import TensorDataset

from lightning_byz import ToleranceError, TooManyFaults
from lightning_byz.aggregators import (
    CTMA,
    CoordinateMedian,
    GeometricMedian,
    Mean,
    MoNNA,
    MultiKrum,
    TrimmedMean,
)
from lightning_byz.preaggregators import NNM
from lightning_byz.rounds import Attackers, Defence, Robust
from lightning_byz.rounds.start_up import fitting_defence

GUESS = 10.0
"""Accuracy of a run that has stopped, in percent."""

CANDIDATES = [
    Rules(Mean()),
    Rules(CoordinateMedian()),
    Rules(TrimmedMean()),
    Rules(GeometricMedian()),
    Rules(MultiKrum()),
    Rules(MoNNA()),
    Rules(CTMA(CoordinateMedian())),
    Rules(CTMA(GeometricMedian())),
    Rules(CoordinateMedian(), (NNM(),)),
    Rules(CTMA(CoordinateMedian()), (NNM(),)),
    Rules(GeometricMedian(), (NNM(),)),
]


@cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return training and test samples."""
    return read(None)


def measure(rules: Rules, setting: Setting, partition: str, attack: str, *, seeds: int, steps: int) -> Cell:
    """Fill one cell."""
    warnings.simplefilter("ignore")
    (data, test), shards, accuracies, f = digits(), PARTITIONS[partition], [], 0.0
    for seed in range(seeds):
        try:
            defence = _defence(rules, setting.f, partition, seed)
        except ToleranceError as error:
            return Cell(refusal=str(error))
        f, seen = defence.f, []
        round = Robust(defence, setting.estimator, Attackers(ATTACKERS if ATTACKS[attack] else (), ATTACKS[attack]))
        try:
            seen += [100 * float(right(learner, test).mean()) for learner in train(round, data, shards, steps=steps)]
        except TooManyFaults:
            seen = [GUESS]
        accuracies.append(statistics.fmean(seen))
    return Cell(tuple(accuracies), f)


def _defence(rules: Rules, f: float | str, partition: str, seed: int) -> Defence:
    def make(f: float) -> Defence:
        weights = weights_of(PARTITIONS[partition])
        return Defence(WORKERS, f, rules.aggregator, rules.preaggregators, weights, seed)

    return fitting_defence(0.0 if rules.aggregator == Mean() else f, make, workers=WORKERS, sliced=False)


def main(
    *,
    seeds: int = 5,
    steps: int = 100,
    only: Sequence[str] = (),
    output: Path = PAGE,
    processes: int | None = None,
) -> None:
    """Measure, print the tables, and write the page.

    Args:
        seeds: Runs per cell, with networks, shards and orders of their own.
        steps: Steps per run.
        only: Names of rules as the table has them; without it, all. The mean is always there.
        output: The page.
        processes: Processes of one thread each; without it, as many as there are cores.
    """
    chosen = [
        rules
        for rules in CANDIDATES
        if rules.name == "Mean" or not only or set(only) & {rules.name, *re.findall(r"\w+", rules.name)}
    ]
    jobs = [(s, r, p, a) for s in SETTINGS for r in chosen for p in PARTITIONS for a in s.attacks]
    cells: Cells = {}
    with processes_of_one_thread(processes) as pool:
        waiting = [
            ((s.title, r.name, p, a), pool.submit(measure, r, s, p, a, seeds=seeds, steps=steps)) for s, r, p, a in jobs
        ]
        cells = {key: future.result() for key, future in waiting}
    names = [rules.name for rules in chosen]
    for setting in SETTINGS:
        order = ranked(cells, names, setting, list(PARTITIONS))
        for partition in PARTITIONS:
            shown = table(f"{setting.title}: {partition}", *header(setting))
            for line in rows(cells, order, setting, partition):
                shown.add_row(*line)
            console().print(shown)
        console().print(summary(order), "", markup=False)
    arguments = [f"--seeds={seeds}"] * (seeds != 5) + [f"--steps={steps}"] * (steps != 100)
    arguments += [f"--only='[{', '.join(only)}]'"] * bool(only)
    command = " ".join(["python benchmarks/default.py", *arguments])
    text = page(cells, names, list(PARTITIONS), command=command, seeds=seeds, steps=steps)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main, as_positional=False)
