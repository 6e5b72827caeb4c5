"""Double momentum and momentum as their authors released them, said again in plain loops, with a switch for everything in which ours differs.

    python benchmarks/mu2_restated.py --data=mnist --output=runs/released.jsonl
    python benchmarks/mu2_restated.py --data=mnist --setting.sampling=dealt --setting.start=zero --optimizers='[momentum]' --attacks='[flip]'

A second statement of what ``benchmarks/mu2.py`` does through the package: it imports nothing of it, and shares no rule, attack, estimator or sampler.
The network is convolution 1-16, batch norm, ReLU, pooling, convolution 16-32, batch norm, ReLU, pooling, linear: 29 034 parameters. Of 17 workers
the last 8 are Byzantine. The test set is classified with several statistics for batch norm, which no gradient depends on, so that one run has a
figure for each of them: ``shared``, as released, one running average fed by every pass of every worker in turn; ``own``, an average per worker, of
which the coordinate-wise median is taken; ``exact``, of 2 000 training images at once.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli
from mu2_work import Data, data_of, network
from scipy.stats import norm
from torch import Tensor, nn

WORKERS, BYZANTINE, BATCH, LEARNING_RATE, CLIP, FORGET = 17, 8, 4, 0.1, 2.0, 0.1
HONEST = WORKERS - BYZANTINE
Batches = Sequence[Tensor]
"""Indices of samples, a vector per worker."""


@dataclass(frozen=True)
class Setting:
    """Where this procedure may differ from the released one; the defaults are the released ones.

    Args:
        dtype: Of the network, the data and everything else.
        sampling: ``rounds``: an order of all samples per epoch, cut into rounds and these into workers, the incomplete round left out; ``dealt``: as
            ``DistributedSampler`` deals an order of all samples to the workers in each epoch, whose last batch has the rest; ``replacement``: drawn.
        test: The 2 000 test images: the last, the first, or drawn once for all runs.
        normalised: Whether pixels are shifted and scaled by MNIST's mean and deviation, or lie in [0, 1].
        passes: ``released``: at the new point on the batch that was just used, at the end of a round; ``next``: at both points on the next batch.
        clip: Which of the two gradients of double momentum are clipped to norm 2; momentum has one.
        start: Momentum's first value: the first gradient, or a tenth of it, as an average that starts from zero.
        ties: Whether CTMA keeps all rows at the last distance kept, or as many as it should.
        rounds: How many.
        every: Rounds between evaluations, counted back from the last.

    """

    dtype: Literal["float64", "float32"] = "float64"
    sampling: Literal["rounds", "dealt", "replacement"] = "rounds"
    test: Literal["last", "first", "drawn"] = "last"
    normalised: bool = True
    passes: Literal["released", "next"] = "released"
    clip: Literal["both", "first", "none"] = "both"
    start: Literal["gradient", "zero"] = "gradient"
    ties: Literal["all", "some"] = "all"
    rounds: int = 472
    every: int = 59


def batches(samples: int, setting: Setting, draws: torch.Generator) -> Iterator[Batches]:
    """Yield one round's samples after the other, without end."""
    size = WORKERS * BATCH
    while True:
        if setting.sampling == "replacement":
            yield torch.randint(samples, (size,), generator=draws).split(BATCH)
            continue
        order = torch.randperm(samples, generator=draws)
        if setting.sampling == "rounds":
            yield from (order[start : start + size].split(BATCH) for start in range(0, samples - size + 1, size))
            continue
        each = -(-samples // WORKERS)
        hands = torch.cat([order, order])[: each * WORKERS].view(each, WORKERS)
        yield from (list(hands[start : start + BATCH].T) for start in range(0, each, BATCH))


def median(rows: Tensor) -> Tensor:
    """The middle value of each coordinate of an odd number of rows."""
    return rows.sort(dim=0).values[len(rows) // 2]


def ctma(rows: Tensor, *, ties: str) -> Tensor:
    """The mean of the rows that are nearest to the median."""
    centre = median(rows)
    distances = (rows - centre).norm(dim=1)
    if ties == "some":
        return rows[distances.argsort(stable=True)[:HONEST]].mean(dim=0)
    near = distances <= distances.sort().values[HONEST - 1]
    return centre + (rows - centre)[near].sum(dim=0) / HONEST


def attacked(rows: Tensor, attack: str) -> Tensor:
    """The rows as they arrive."""
    honest, byzantine = rows[:HONEST], rows[HONEST:]
    if attack == "flip":
        return torch.cat([honest, -byzantine])
    supporters = WORKERS // 2 + 1 - BYZANTINE
    z = float(norm.ppf((HONEST - supporters) / HONEST))
    lie = honest.mean(dim=0) - z * honest.std(dim=0)
    return torch.cat([honest, lie.expand(BYZANTINE, -1)])


def statistics_of(net: nn.Sequential) -> Tensor:
    """Return the buffers of batch norm, as one vector."""
    layers = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    return torch.cat([torch.cat([layer.running_mean, layer.running_var]) for layer in layers])


def use(net: nn.Sequential, values: Tensor) -> None:
    """Write such a vector to the buffers."""
    layers = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    for layer, part in zip(layers, values.split([2 * layer.num_features for layer in layers]), strict=True):
        layer.running_mean, layer.running_var = (half.to(layer.running_mean) for half in part.chunk(2))


@dataclass
class Run:
    """One run: the network, and the running statistics of its batch norm."""

    data: Data
    setting: Setting
    attack: str
    seed: int
    net: nn.Sequential = field(init=False)
    shared: Tensor = field(init=False)
    own: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.net = network(momentum=1.0).to(self.data.images.dtype)
        self.parameters = list(self.net.parameters())
        self.shared = statistics_of(self.net)
        self.own = self.shared.repeat(WORKERS, 1)

    def gradients(self, batch: Batches, *, clip: bool, visible: bool) -> Tensor:
        """Return every worker's gradient of its batch where the parameters are."""
        rows = []
        for worker, indices in enumerate(batch):
            loss = nn.functional.cross_entropy(self.net(self.data.images[indices]), self.data.labels[indices])
            row = torch.cat([part.flatten() for part in torch.autograd.grad(loss, self.parameters)])
            rows.append(row * min(1.0, CLIP / max(float(row.norm()), 1e-30)) if clip else row)
            now = statistics_of(self.net)
            if worker < HONEST or self.attack == "flip":
                self.shared = (1 - FORGET) * self.shared + FORGET * now
            if visible:
                self.own[worker] = (1 - FORGET) * self.own[worker] + FORGET * now
        return torch.stack(rows)

    def stream(self) -> Iterator[Batches]:
        """Return the rounds' batches, in an order of this seed."""
        return batches(len(self.data.labels), self.setting, torch.Generator().manual_seed(self.seed))

    def aggregate(self, rows: Tensor, rule: str) -> Tensor:
        """Return what the rule makes of the rows under attack."""
        rows = attacked(rows, self.attack)
        return median(rows) if rule == "median" else ctma(rows, ties=self.setting.ties)

    def point(self) -> Tensor:
        """Return the parameters as one vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def move(self, point: Tensor) -> None:
        """Set the parameters."""
        nn.utils.vector_to_parameters(point, self.parameters)

    def accuracies(self) -> dict[str, float]:
        """Return the percentage of test images that are classified rightly, in float32, by the statistics used."""
        net, found = network(momentum=1.0), {}
        net.load_state_dict(self.net.state_dict())
        with torch.no_grad():
            net(self.data.images[:2000].float())
            kinds = {"exact": statistics_of(net), "shared": self.shared, "own": median(self.own)}
            for name, values in kinds.items():
                use(net.eval(), values)
                guesses = torch.cat([net(images).argmax(dim=1) for images in self.data.test_images.float().split(250)])
                found[name] = 100 * float((guesses == self.data.test_labels).double().mean())
        return found


def momentum(run: Run, rule: str) -> Iterator[int]:
    """Train, with an average of gradients per worker; yield after each round its number."""
    setting, stream, averages = run.setting, run.stream(), None
    next(stream)
    x = run.point()
    for t in range(1, setting.rounds + 1):
        gradients = run.gradients(next(stream), clip=setting.clip != "none", visible=True)
        start = gradients if setting.start == "gradient" else 0.1 * gradients
        averages = start if averages is None else 0.9 * averages + 0.1 * gradients
        x = x - LEARNING_RATE * run.aggregate(averages, rule)
        run.move(x)
        yield t


def mu2(run: Run, rule: str) -> Iterator[int]:
    """Train, with corrected estimates and averaged query points; yield after each round its number."""
    setting, stream = run.setting, run.stream()
    first, second = setting.clip != "none", setting.clip == "both"
    batch = next(stream)
    estimates = run.gradients(batch, clip=first, visible=True)
    w = x = run.point()
    before = x
    for t in range(1, setting.rounds + 1):
        if setting.passes == "released":
            batch = next(stream)
            here = run.gradients(batch, clip=first, visible=True)
        elif t > 1:
            batch = next(stream)
            run.move(before)
            there = run.gradients(batch, clip=second, visible=False)
            run.move(x)
            here = run.gradients(batch, clip=first, visible=True)
            estimates = here + (1 - max(round(1 / t, 3), 0.01)) * (estimates - there)
        w = w - LEARNING_RATE * run.aggregate(estimates, rule)
        gamma = max(round(2 / (t + 1), 3), 0.01)
        before, x = x, (1 - gamma) * x + gamma * w
        run.move(x)
        if setting.passes == "released":
            again = run.gradients(batch, clip=second, visible=False)
            estimates = again + (1 - max(round(1 / (t + 1), 3), 0.01)) * (estimates - here)
        yield t


TRAINED = {"mu2": mu2, "momentum": momentum}


def measure(
    data: Data, setting: Setting, optimizer: str, rule: str, attack: str, seed: int
) -> dict[str, dict[int, float]]:
    """Return the accuracies by what batch norm used, and by round."""
    run, found = Run(data, setting, attack, seed), {}
    for t in TRAINED[optimizer](run, rule):
        if (setting.rounds - t) % setting.every == 0:
            for name, accuracy in run.accuracies().items():
                found.setdefault(name, {})[t] = accuracy
    return found


def cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.2f} ± {error:.2f}"


def main(
    *,
    data: Path | None = None,
    setting: Setting = Setting(),
    optimizers: Sequence[str] = tuple(TRAINED),
    rules: Sequence[str] = ("ctma", "median"),
    attacks: Sequence[str] = ("flip", "alie"),
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    output: Path | None = None,
) -> None:
    """Train, and print a line per cell: the last accuracy for each kind of statistics, then the best one with shared statistics.

    Args:
        data: Folder of MNIST's 10 000 test images in IDX; without it, scikit-learn's digits.
        setting: Where the procedure differs from the released one.
        optimizers: Of ``mu2`` and ``momentum``.
        rules: Of ``ctma`` and ``median``.
        attacks: Of ``flip`` and ``alie``.
        seeds: Of the first parameters and of the order of the samples.
        output: A file to which a line of JSON per run is added.

    """
    samples = data_of(data, dtype=getattr(torch, setting.dtype), test=setting.test, normalised=setting.normalised)
    for attack in attacks:
        for rule in rules:
            for optimizer in optimizers:
                started, runs = time.perf_counter(), []
                for seed in seeds:
                    runs.append(measure(samples, setting, optimizer, rule, attack, seed))
                    about = {"optimizer": optimizer, "rule": rule, "attack": attack, "seed": seed, **asdict(setting)}
                    if output is not None:
                        with output.open("a") as file:
                            file.write(json.dumps({**about, "found": runs[-1]}) + "\n")
                lasts = {name: cell([run[name][setting.rounds] for run in runs]) for name in runs[0]}
                best = cell([max(run["shared"].values()) for run in runs])
                took = (time.perf_counter() - started) / len(seeds)
                shown = "  ".join(f"{name} {value}" for name, value in lasts.items())
                print(f"{attack:5}{rule:7}{optimizer:9} last: {shown}  best: {best}  ({took:.0f} s a run)", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main, as_positional=False)
