"""Double momentum and momentum as their authors released them, in plain loops, for ``mu2_restated.py``: nothing here is of the package."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from mu2_work import Data, network
from scipy.stats import norm
from torch import Tensor, nn

WORKERS, BYZANTINE, BATCH, LEARNING_RATE, CLIP, FORGET = 17, 8, 4, 0.1, 2.0, 0.1
HONEST = WORKERS - BYZANTINE
STATISTICS = ("running_mean", "running_var")

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
    return torch.cat([layer.get_buffer(name) for layer in layers for name in STATISTICS])


def use(net: nn.Sequential, values: Tensor) -> None:
    """Write such a vector to the buffers."""
    layers = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    for layer, part in zip(layers, values.split([2 * layer.num_features for layer in layers]), strict=True):
        for name, half in zip(STATISTICS, part.chunk(2), strict=True):
            layer.get_buffer(name).copy_(half)


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
    if setting.sampling == "rounds":
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
    estimates = here = run.gradients(batch, clip=first, visible=True)
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
