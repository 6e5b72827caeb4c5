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
import os
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, dataclass, fields
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import torch
from images import read
from jsonargparse import auto_cli
from rich.table import Table
from tables import console
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

from lightning_byz import ToleranceError, aggregators, preaggregators
from lightning_byz.aggregators import CTMA, Aggregator, CenteredClipping, CoordinateMedian, GeometricMedian, Mean
from lightning_byz.data import IID, Dirichlet, Partition, Sizes
from lightning_byz.exchange import Local
from lightning_byz.flat import Layout
from lightning_byz.memory import Memory
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import derive
from lightning_byz.rounds import Defence, Robust, Sent

WORKERS, BATCH, HIDDEN, LEARNING_RATE, SIGN_RATE = 12, 16, 64, 0.5, 0.005
EXACT, DOUBLED = 2, 4
PARTITIONS: dict[str, Partition] = {
    "IID": IID(),
    "Dirichlet(0.1)": Dirichlet(0.1),
    "sizes 2, 3, 4": Sizes([2, 3, 4] * (WORKERS // 3)),
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "price.md"


@dataclass(frozen=True)
class Rules:
    """An aggregator, perhaps behind a pre-aggregator."""

    aggregator: Aggregator
    preaggregators: tuple[PreAggregator, ...] = ()

    @property
    def name(self) -> str:
        """The chain's short name."""
        rule = self.aggregator
        inner = (
            f"({type(rule.base).__name__})"
            if isinstance(rule, CTMA)
            else f"(radius={rule.radius:g})"
            if isinstance(rule, CenteredClipping)
            else ""
        )
        return " -> ".join(
            [*(type(rule).__name__ for rule in self.preaggregators), type(self.aggregator).__name__ + inner]
        )


@dataclass(frozen=True)
class Cell:
    """One rule on one partition with one f: accuracies per seed, in percent, or why it does not run."""

    overall: tuple[float, ...] = ()
    worst: tuple[float, ...] = ()
    refusal: str = ""


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


# ---------------------------------------------------------------------- training


def batches(data: TensorDataset, partition: Partition, *, seed: int) -> Iterator[Tensor]:
    """Yield the workers' indices (n, b) of one step after the other."""
    samplers = partition.samplers(data, workers=WORKERS, shuffle=True, seed=seed, batch_size=BATCH)
    for epoch in count():
        orders = []
        for sampler in samplers:
            sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue] - both kinds have it
            orders.append(torch.tensor(list(sampler)))
        yield from torch.stack(orders)[:, : len(orders[0]) // BATCH * BATCH].split(BATCH, dim=1)


def train(defence: Defence, data: TensorDataset, partition: Partition, *, steps: int) -> Iterator[nn.Module]:
    """Train, and yield the network five times in the last fifth of the steps."""
    x, y = data.tensors
    with torch.random.fork_rng():
        torch.manual_seed(derive(defence.seed, "network"))
        network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(y.max()) + 1))
    weights = dict(network.named_parameters())
    gradients = vmap(
        grad(lambda values, x, y: nn.functional.cross_entropy(functional_call(network, values, (x,)), y)),
        in_dims=(None, 0, 0),
    )
    rate = SIGN_RATE if type(defence.aggregator).__name__.startswith("Sign") else LEARNING_RATE
    layout = Layout.of(weights.items())
    wire = Local().open(layout.total, dtype=layout.dtype, device=x.device, placement=Local().place(WORKERS))
    memory, round = Memory(), Robust(defence)
    shown = set(range(steps - 1, steps * 4 // 5 - 1, -max(steps // 25, 1)))
    for step, own in enumerate(islice(batches(data, partition, seed=defence.seed), steps)):
        parts = gradients({name: value.detach() for name, value in weights.items()}, x[own], y[own])
        sent = {worker: Sent([wire.row(worker)], [True] * len(parts)) for worker in range(WORKERS)}
        for worker in sent:
            layout.flatten([part[worker] for part in parts.values()], out=layout.views(wire.row(worker)))
        vector, memory, _ = round.take(memory, sent, wire, parameters=len(parts))
        if vector is not None:
            with torch.no_grad():
                for value, part in zip(weights.values(), layout.views(vector), strict=True):
                    value -= rate * part
        if step in shown:
            yield network


def measure(rules: Rules, partition: str, f: int, *, folder: Path | None, seeds: int, steps: int) -> Cell:
    """Fill one cell; weights are the sizes of the shards."""
    warnings.simplefilter("ignore")
    data, test = read(folder)
    sizes = PARTITIONS[partition]
    weights = tuple(float(size) for size in sizes.sizes) if isinstance(sizes, Sizes) else None
    results = []
    for seed in range(seeds):
        defence = Defence(WORKERS, f, rules.aggregator, preaggregators=rules.preaggregators, weights=weights, seed=seed)
        try:
            defence.check()
        except ToleranceError as error:
            return Cell(refusal=str(error))
        networks = train(defence, data, sizes, steps=steps)
        seen = [accuracies(network, data, test, sizes, seed=seed) for network in networks]
        results.append([statistics.fmean(column) for column in zip(*seen, strict=True)])
    overall, worst = zip(*results, strict=True)
    return Cell(overall, worst)


def accuracies(
    network: nn.Module, data: TensorDataset, test: TensorDataset, partition: Partition, *, seed: int
) -> tuple[float, float]:
    """Return the accuracy on the test samples, and that of the worker for whose mixture of labels it is lowest, in percent."""
    (x, y), labels = test.tensors, data.tensors[1]
    with torch.no_grad():
        right = (network(x).argmax(1) == y).double()
    classes = int(labels.max()) + 1
    per_class = torch.stack([right[y == label].mean() for label in range(classes)])
    shards = partition.shards(data, workers=WORKERS, seed=seed)
    mixtures = [torch.bincount(labels[torch.as_tensor(shard)], minlength=classes) / len(shard) for shard in shards]
    return 100 * float(right.mean()), 100 * min(float(mixture.double() @ per_class) for mixture in mixtures)


# ---------------------------------------------------------------------- words


def rows(cells: dict[tuple[str, str, int], Cell], names: Sequence[str], partition: str) -> list[list[str]]:
    """Return the lines of one partition's table: the mean's accuracies, the others' differences from them."""
    mean, lines = cells[Mean.__name__, partition, 0], []
    for name in names:
        line = [name]
        for f in (EXACT, DOUBLED):
            cell = mean if name == Mean.__name__ else cells[name, partition, f]
            if cell.refusal:
                line += ["refuses weights" if "equal weights" in cell.refusal else f"refuses f = {f}"] * 2
                continue
            for values, base in ((cell.overall, mean.overall), (cell.worst, mean.worst)):
                line.append(
                    _spread(values, "")
                    if cell is mean
                    else _spread([one - other for one, other in zip(values, base, strict=True)], "+")
                )
        lines.append(line)
    return lines


def _spread(values: Sequence[float], sign: str) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


HEADER = ["rule", *(f"{who}, f = {f}" for f in (EXACT, DOUBLED) for who in ("overall", "worst worker"))]


def page(
    tables: dict[str, list[list[str]]], refusals: Sequence[str], *, command: str, data: str, seeds: int, steps: int
) -> str:
    """Return the page."""
    text = f"""# The price of robustness where nobody attacks

```bash
{command}
```

A network of one hidden layer of {HIDDEN} learns {data} from {WORKERS} honest workers, batches of {BATCH}, {steps} steps of SGD with
learning rate {LEARNING_RATE} ({SIGN_RATE} for rules that return signs). Rules run with default arguments, which are not tuned to this problem, with
f = {EXACT} and, as if one had been too careful, f = {DOUBLED}. The line of `Mean` is its accuracy on test samples in percent; the other lines are
differences from it, in points, for the same seeds: mean and standard deviation over {seeds} seeds, each the mean of five moments in the last
fifth of the steps. *Overall* is the accuracy on all test samples; *worst worker* weighs the accuracy on each label by its share in the
worker's shard, and is that of the worker for whom this is lowest. With unequal sizes the weights are the sizes. A rule that refuses a
cell says so; a line of zeros throughout is of a rule that never did anything, such as clipping at a radius that no row reaches.
"""
    for title, lines in tables.items():
        text += f"\n## {title}\n\n| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}\n"
        text += "".join(f"| {' | '.join([f'`{line[0]}`', *line[1:]])} |\n" for line in lines)
    return text + ("\n## Refusals\n\n" + "".join(f"- {refusal}\n" for refusal in refusals) if refusals else "")


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
    with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {
            (r.name, p, f): pool.submit(measure, r, p, f, folder=data, seeds=seeds, steps=steps) for r, p, f in jobs
        }
        cells = {key: future.result() for key, future in waiting.items()}
    tables = {partition: rows(cells, [rules.name for rules in chosen], partition) for partition in PARTITIONS}
    for title, lines in tables.items():
        table = Table(*HEADER, title=title)
        for line in lines:
            table.add_row(*line)
        console().print(table)
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
