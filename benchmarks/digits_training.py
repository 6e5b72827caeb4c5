"""A small network on digits, trained by twelve workers in the package's own chain; their gradients come from one vectorised pass."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_byz.aggregators import CTMA, Aggregator, CenteredClipping
from lightning_byz.data import IID, Dirichlet, Partition, Sizes
from lightning_byz.exchange import Local
from lightning_byz.flat import Layout
from lightning_byz.memory import Memory
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import derive
from lightning_byz.rounds import Robust, Sent

WORKERS, BATCH, HIDDEN, LEARNING_RATE, SIGN_RATE = 12, 16, 64, 0.5, 0.005
PARTITIONS: dict[str, Partition] = {
    "IID": IID(),
    "Dirichlet(0.1)": Dirichlet(0.1),
    "sizes 2, 3, 4": Sizes([2, 3, 4] * (WORKERS // 3)),
}


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


def processes_of_one_thread(count: int | None) -> ProcessPoolExecutor:
    """Return a pool of that many, or of as many as there are cores."""
    return ProcessPoolExecutor(count, get_context("spawn"), torch.set_num_threads, (1,))


def weights_of(partition: Partition) -> tuple[float, ...] | None:
    """Return how much each worker counts: the sizes, where sizes are given."""
    return tuple(float(size) for size in partition.sizes) if isinstance(partition, Sizes) else None


def batches(data: TensorDataset, partition: Partition, *, seed: int) -> Iterator[Tensor]:
    """Yield the workers' indices (n, b) of one step after the other."""
    samplers = partition.samplers(data, workers=WORKERS, shuffle=True, seed=seed, batch_size=BATCH)
    for epoch in count():
        orders = []
        for sampler in samplers:
            sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue] - both kinds have it
            orders.append(torch.tensor(list(sampler)))
        yield from torch.stack(orders)[:, : len(orders[0]) // BATCH * BATCH].split(BATCH, dim=1)


def network(data: TensorDataset, *, seed: int) -> nn.Sequential:
    """Return one with a hidden layer."""
    x, y = data.tensors
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "network"))
        return nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(y.max()) + 1))


def gradients(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
    """Return the workers' gradients (n, ...) of each of the network's parameters, from their batches (n, b, ...): each has its copy of them."""
    own = [value.detach().expand(len(x), *value.shape).requires_grad_() for value in weights]
    inner, inner_bias, outer, outer_bias = own
    hidden = torch.baddbmm(inner_bias.unsqueeze(1), x, inner.mT).relu()
    scores = torch.baddbmm(outer_bias.unsqueeze(1), hidden, outer.mT)
    losses = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
    return torch.autograd.grad(losses, own)


def train(round: Robust, data: TensorDataset, partition: Partition, *, steps: int) -> Iterator[nn.Module]:
    """Train, and yield the network five times in the last fifth of the steps."""
    (x, y), seed = data.tensors, round.defence.seed
    learner = network(data, seed=seed)
    weights = dict(learner.named_parameters())
    rate = SIGN_RATE if type(round.defence.aggregator).__name__.startswith("Sign") else LEARNING_RATE
    layout = Layout.of(weights.items())
    wire = Local().open(layout.total, dtype=layout.dtype, device=x.device, placement=Local().place(WORKERS))
    memory, shown = Memory(), set(range(steps - 1, steps * 4 // 5 - 1, -max(steps // 25, 1)))
    for step, own in enumerate(islice(batches(data, partition, seed=seed), steps)):
        parts = gradients(list(weights.values()), x[own], y[own])
        sent = {worker: Sent([wire.row(worker)], [True] * len(parts)) for worker in range(WORKERS)}
        for worker in sent:
            layout.flatten([part[worker] for part in parts], out=layout.views(wire.row(worker)))
        vector, memory, _ = round.take(memory, sent, wire, parameters=len(parts))
        if vector is not None:
            with torch.no_grad():
                for value, part in zip(weights.values(), layout.views(vector), strict=True):
                    value -= rate * part
        if step in shown:
            yield learner


def right(learner: nn.Module, test: TensorDataset) -> Tensor:
    """Return 1 for each test sample whose label is found, 0 for the others."""
    x, y = test.tensors
    with torch.no_grad():
        return (learner(x).argmax(1) == y).double()
