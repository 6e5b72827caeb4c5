"""Two optimizers never draw the same numbers, and each has its own wire, memory and layout."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.attacks import Attack
from lightning_byz.callbacks import WorkerMonitor
from lightning_byz.exchange import Local
from lightning_byz.memory import Memory
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import Streams
from lightning_byz.rounds import WorkerBuffers
from lightning_byz.strategies import RobustStrategy
from lightning_byz.strategies.run import Run
from tests.recording import Noting
from tests.rounds import robust, take
from tests.scenarios import Classifier, Fit, Options, fit, same_bits


class Twins(Classifier):
    """A GAN's way of training: two networks of one size, stepped in turn on one batch, each by its own optimizer."""

    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False
        self.network = nn.ModuleList([nn.Linear(8, 2, bias=False), nn.Linear(8, 2, bias=False)])
        for part in self.network:
            nn.init.zeros_(part.weight)
        self.gradients = []

    def forward(self, points):
        return self.network[0](points) + self.network[1](points)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.network]

    def training_step(self, batch, batch_idx):
        for optimizer, part in zip(self.optimizers(), self.network, strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]) * 0.0)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.gradients.append(part.weight.grad.clone())

    def on_train_end(self):
        self.register_buffer("seen", torch.stack(self.gradients), persistent=False)


class Shouts(Attack):
    """Noise and nothing else."""

    def replace(self, sight):
        return torch.randn(sight.own.shape, generator=sight.generator).to(sight.own.dtype)


class Jitters(PreAggregator):
    """Adds to every row one number that it draws."""

    random = True

    def __call__(self, stack, *, generator=None):
        draw = torch.rand((), generator=self.drawing(generator), dtype=torch.float64)
        return stack.shrink(draw.expand(len(stack.weights)))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.filterwarnings("ignore:1 workers attack")
def test_a_gan_is_shouted_at_with_other_noise_at_each_optimizer(ranks, world):
    strategy = {"f": 0, "aggregator": Mean(), "attackers": [0], "attack": Shouts(), "workers": world}
    job = Fit(strategy=strategy, module=Twins, trainer={"max_steps": 8})
    first, second = (ranks(world).run(fit, job, world)[0]["buffers"]["seen"] for _ in range(2))
    assert torch.equal(first, second), "drawn again"
    assert first.abs().amin() > 0, "noise at every coordinate: the gradients are zero"
    assert len({round(float(row[0, 0]), 6) for row in first}) == len(first) == 8, "another at each optimizer and step"


class Heard(DummyLogger):
    """Keeps the steps under which something of workers was logged, once for both optimizers."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step):
        self.steps += [step] * ("workers/norm_mean" in metrics)


def test_both_are_logged_under_the_step_of_their_batch():
    heard, strategy = Heard(), RobustStrategy(f=0, aggregator=Mean())
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        logger=heard,
        callbacks=[WorkerMonitor()],
        max_steps=6,
        log_every_n_steps=1,
        **quiet,
    )
    trainer.fit(Twins(Options()))
    assert heard.steps == [0, 1, 2]


def test_rules_that_draw_draw_otherwise_at_each_optimizer():
    rows, seen, noting = torch.ones(4, 3), [], Noting()
    for optimizer in (0, 1, 0):
        round = robust(4, 0, noting, preaggregators=[Jitters()], optimizer=optimizer)
        seen.append(take(round, Memory(), rows).vector.tolist())
    assert seen[0] == seen[2] != seen[1]
    first, second, again = (shown["draw"] for shown in noting.seen)
    assert first == again != second


def test_both_are_resumed(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    strategy = {"f": 0, "aggregator": Mean(), "attackers": [0], "attack": Shouts()}
    whole = ranks(2).run(fit, Fit(strategy=strategy, module=Twins), 2)[0]
    ranks(2).run(fit, Fit(strategy=strategy, module=Twins, trainer={"max_epochs": 1}, save=path), 2)
    for result in ranks(2).run(fit, Fit(strategy=strategy, module=Twins, checkpoint=path), 2):
        assert not same_bits(result["parameters"], whole["parameters"])


def test_each_goes_on_with_its_own_round_when_the_rounds_change():
    module, placement = Classifier(Options()), Local().place(2)
    buffers, streams = WorkerBuffers(module, placement.local), Streams(torch.device("cpu"))
    run = Run(module, Local(), placement, buffers=buffers, streams=streams, seed=0)
    for f in (0, 1):
        run.begin(lambda optimizer, f=f: robust(4, f, CoordinateMedian(), optimizer=optimizer))
        defences = [run.aggregation(index).round.defence for index in (1, 0)]
        assert [(defence.f, defence.optimizer) for defence in defences] == [(f, 1), (f, 0)]
