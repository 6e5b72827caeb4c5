"""What robustness costs where nobody attacks: the accuracy of each rule in ratio to the mean, overall and for the worst-served worker.

    python benchmarks/price.py
    python benchmarks/price.py --data=folder/with/mnist --seeds=5
    python benchmarks/price.py --only='[Mean, Krum, NNM]' --steps=50 --output=part.md

A small network learns from 12 honest workers by plain SGD, with scikit-learn's handwritten digits or with a folder that has MNIST images and labels
as IDX files (``*images-idx3-ubyte.gz``, ``*labels-idx1-ubyte.gz``). Every aggregator of the package runs by itself, every pre-aggregator before
CoordinateMedian, CTMA over CoordinateMedian and GeometricMedian, and CenteredClipping with a shorter radius too. The rules run in the package's own
chain, so that memories, draws, weights and refusals are those of a run through the Trainer; the workers' gradients come from one vectorised pass.
"""

import inspect
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from digits_training import (
    PARTITIONS,
    WORKERS,
    Rules,
    processes_of_one_thread,
    right,
    train,
    weights_of,
)
from images import read
from jsonargparse import auto_cli
from price_page import DOUBLED, EXACT, HEADER, Cell, page, rows, summary
from tables import console, table
from torch import nn
from torch.utils.data import TensorDataset

from lightning_byz import ToleranceError, aggregators, preaggregators
from lightning_byz.aggregators import CTMA, CenteredClipping, CoordinateMedian, GeometricMedian, Mean
from lightning_byz.data import Partition
from lightning_byz.rounds import Defence, Robust

PAGE = Path(__file__).resolve().parent.parent / "docs" / "price.md"


def chains() -> list[Rules]:
    """Return what is measured: what the package exports, made with default arguments."""
    exported = [getattr(aggregators, name) for name in aggregators.__all__]
    plain = [rule() for rule in exported if not inspect.isabstract(rule) and not _required(rule)]
    before = [getattr(preaggregators, name) for name in preaggregators.__all__]
    return [
        *(Rules(rule) for rule in sorted(plain, key=lambda rule: (rule != Mean(), type(rule).__name__.lower()))),
        *(Rules(CTMA(base)) for base in (CoordinateMedian(), GeometricMedian())),
        Rules(CenteredClipping(radius=0.5)),
        *(
            Rules(CoordinateMedian(), (rule(),))
            for rule in before
            if not inspect.isabstract(rule) and not _required(rule)
        ),
    ]


def _required(rule: type) -> list[str]:
    return [field.name for field in fields(rule) if field.default is MISSING and field.default_factory is MISSING]


def measure(rules: Rules, partition: str, f: int, *, folder: Path | None, seeds: int, steps: int) -> Cell:
    """Fill one cell; weights are the sizes of the shards."""
    warnings.simplefilter("ignore")
    data, test = read(folder)
    shards = PARTITIONS[partition]
    results = []
    for seed in range(seeds):
        defence = Defence(
            WORKERS,
            f,
            rules.aggregator,
            preaggregators=rules.preaggregators,
            weights=weights_of(shards),
            seed=seed,
        )
        try:
            defence.check()
        except ToleranceError as error:
            return Cell(refusal=str(error))
        learners = train(Robust(defence), data, shards, steps=steps)
        seen = [accuracies(learner, data, test, shards, seed=seed) for learner in learners]
        results.append([statistics.fmean(column) for column in zip(*seen, strict=True)])
    overall, worst = zip(*results, strict=True)
    return Cell(overall, worst)


def accuracies(
    learner: nn.Module, data: TensorDataset, test: TensorDataset, partition: Partition, *, seed: int
) -> tuple[float, float]:
    """Return the accuracy on the test samples, and that of the worker for whose mixture of labels it is lowest, in percent."""
    found, y, labels = right(learner, test), test.tensors[1], data.tensors[1]
    classes = int(labels.max()) + 1
    per_class = torch.stack([found[y == label].mean() for label in range(classes)])
    shards = partition.shards(data, workers=WORKERS, seed=seed)
    mixtures = [torch.bincount(labels[torch.as_tensor(shard)], minlength=classes) / len(shard) for shard in shards]
    return 100 * float(found.mean()), 100 * min(float(mixture.double() @ per_class) for mixture in mixtures)


def main(
    *,
    data: Path | None = None,
    seeds: int = 3,
    steps: int = 250,
    only: Sequence[str] = (),
    output: Path = PAGE,
    processes: int | None = None,
) -> None:
    """Measure, print the tables, and write the page.

    Args:
        data: A folder with MNIST's images and labels; without it, scikit-learn's digits.
        seeds: Runs per cell, with networks, shards and orders of their own.
        steps: Steps per run.
        only: Names of classes; without it, all. The mean is always there.
        output: The page.
        processes: Processes of one thread each; without it, as many as there are cores.
    """
    chosen = [
        rules
        for rules in chains()
        if rules.name == "Mean" or not only or set(only) & set(re.findall(r"\w+", rules.name))
    ]
    jobs = [
        (rules, partition, f)
        for rules in chosen
        for partition in PARTITIONS
        for f in ((0,) if rules.name == "Mean" else (EXACT, DOUBLED))
    ]
    with processes_of_one_thread(processes) as pool:
        waiting = {
            (r.name, p, f): pool.submit(measure, r, p, f, folder=data, seeds=seeds, steps=steps) for r, p, f in jobs
        }
        cells = {key: future.result() for key, future in waiting.items()}
    names = [rules.name for rules in chosen]
    tables = {p: (summary(cells, names, p), rows(cells, names, p)) for p in PARTITIONS}
    for title, (line, lines) in tables.items():
        shown = table(title, *HEADER)
        for cells_of_rule in lines:
            shown.add_row(*cells_of_rule)
        console().print(shown, line, "", markup=False)
    refusals = sorted(
        {
            f"`{name}`, {partition}, f = {f}: {cell.refusal}"
            for (name, partition, f), cell in cells.items()
            if cell.refusal
        }
    )
    arguments = (
        ([] if data is None else [f"--data={data.name}"])
        + [f"--seeds={seeds}"] * (seeds != 3)
        + [f"--steps={steps}"] * (steps != 250)
    )
    arguments += [f"--only='[{', '.join(only)}]'"] * bool(only)
    command, source = (
        " ".join(["python benchmarks/price.py", *arguments]),
        "scikit-learn's handwritten digits" if data is None else "MNIST's digits",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(tables, refusals, command=command, data=source, seeds=seeds, steps=steps))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
