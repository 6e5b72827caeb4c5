"""What steps change belongs to their worker, what anybody writes between steps to everybody."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn

from lightning_byz.aggregators import CoordinateMedian, Mean
from tests.ranks import RankFailure
from tests.scenarios import Classifier, Fit, Options, fit, largest_difference, same_bits

MEAN = {"f": 0, "aggregator": Mean()}
FOUR = {"f": 1, "aggregator": CoordinateMedian(), "workers": 4}


class Counts(Classifier):
    """Counts batches in a whole and in a floating buffer, by in-place sums and by assignment."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.whole: Tensor
        self.hidden: Tensor
        self.register_buffer("whole", torch.tensor(0))
        self.register_buffer("floating", torch.tensor(0.0))
        self.register_buffer("hidden", torch.zeros(3))

    def on_train_batch_end(self, *_) -> None:
        self.whole += 1
        self.floating = self.floating + 1
        self.hidden.data.add_(1)


class Queue(Classifier):
    """Keeps what it saw last, and all that it saw, in buffers that ranks fill alike."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.queue: Tensor
        self.grows: Tensor
        self.register_buffer("queue", torch.zeros(8, 8))
        self.register_buffer("grows", torch.zeros(0, 8))

    def training_step(self, batch, batch_idx):
        keys = self.all_gather(batch[0]).reshape(-1, 8)
        self.queue = torch.cat([keys, self.queue])[:8]
        self.grows = torch.cat([self.grows, keys])
        return super().training_step((batch[0] - self.queue.mean(0) + self.grows.mean(0), batch[1]), batch_idx)


class Scatters(Classifier):
    """Grows a buffer by another amount on each rank."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.grows: Tensor
        self.register_buffer("grows", torch.zeros(0))

    def training_step(self, batch, batch_idx):
        self.grows = torch.zeros(len(self.grows) + 1 + self.global_rank)
        return super().training_step(batch, batch_idx)


class PutsBack(Callback):
    """Writes to a batch norm's statistics before validation, and puts back what was there."""

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.mean = pl_module.get_buffer("network.1.running_mean")
        self.before = self.mean.clone()
        self.mean.fill_(7.0)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.mean.copy_(self.before)


def with_callbacks(job: Fit, devices: int, names: list[str]):
    made = {
        "puts back": PutsBack,
        "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
        "averages": lambda: WeightAveraging(use_buffers=True, avg_fn=get_ema_avg_fn(0.5)),
    }
    job.trainer = {**job.trainer, "callbacks": [made[name]() for name in names]}
    return fit(job, devices)


@pytest.mark.parametrize(("strategy", "world"), [(MEAN, 1), (MEAN, 2), (FOUR, 1), (FOUR, 2)])
def test_counters_of_hooks_count_every_batch(ranks, strategy, world):
    job = Fit(Options(batch_norm=True), strategy, module=Counts)
    for result in ranks(world).run(fit, job, world):
        steps = result["global_step"]
        assert steps == {1: 48, 2: 24}[world] if strategy is MEAN else steps == 12
        assert result["buffers"]["whole"] == result["buffers"]["floating"] == steps
        assert result["buffers"]["hidden"].tolist() == [steps] * 3


@pytest.mark.parametrize("world", [1, 2])
def test_queues_and_growing_buffers_are_ddps(ranks, world):
    job = Fit(strategy=MEAN, module=Queue)
    expected = ranks(world).run(fit, Fit(module=Queue), world)
    for result, plain in zip(ranks(world).run(fit, job, world), expected, strict=True):
        assert not same_bits(result["parameters"], plain["parameters"])
        assert not same_bits(result["buffers"], plain["buffers"])
    assert len(expected[0]["buffers"]["grows"]) == 192


def test_a_buffer_that_grows_is_refused_where_workers_share_a_module(ranks):
    with pytest.raises(RuntimeError, match=r"'grows'.*one worker per rank"):
        ranks(1).run(fit, Fit(strategy=FOUR, module=Scatters), 1)


def test_shapes_that_differ_between_ranks_are_refused_on_all(ranks):
    with pytest.raises(RankFailure, match="different shapes on the ranks") as caught:
        ranks(2).run(fit, Fit(strategy=MEAN, module=Scatters), 2)
    assert set(caught.value.failures) == {0, 1}


@pytest.mark.parametrize("world", [1, 2])
def test_swa_recomputes_the_statistics_of_batch_norm(ranks, world):
    trainer = {"max_epochs": 4}
    job = Fit(Options(batch_norm=True), MEAN, module=Classifier, trainer=trainer)
    results = ranks(world).run(with_callbacks, job, world, ["swa"])
    plain = ranks(world).run(with_callbacks, Fit(Options(batch_norm=True), trainer=trainer), world, ["swa"])[0]
    for result in results:
        assert result["buffers"]["network.1.num_batches_tracked"] == plain["buffers"]["network.1.num_batches_tracked"]
        assert not same_bits(result["parameters"], plain["parameters"])
        if world == 1:
            assert not same_bits(result["buffers"], plain["buffers"])


def test_swa_of_several_workers_has_the_statistics_of_one_pass(ranks):
    job = Fit(Options(batch_norm=True), FOUR, trainer={"max_epochs": 4})
    alone, *others = (ranks(world).run(with_callbacks, job, world, ["swa"])[0] for world in (1, 2))
    assert alone["buffers"]["network.1.num_batches_tracked"] == 6
    for result in others:
        assert not same_bits(result["buffers"], alone["buffers"])


@pytest.mark.parametrize("strategy", [MEAN, FOUR], ids=["one", "four"])
def test_averaged_buffers_stay_at_the_end(ranks, strategy):
    job = Fit(Options(batch_norm=True), strategy, module=Classifier)
    averaged = ranks(1).run(with_callbacks, job, 1, ["averages"])[0]
    last = ranks(1).run(fit, job, 1)[0]
    assert largest_difference(averaged["buffers"], last["buffers"]) > 1e-3
    if strategy is MEAN:
        plain = ranks(1).run(with_callbacks, Fit(Options(batch_norm=True)), 1, ["averages"])[0]
        assert not same_bits(averaged["buffers"], plain["buffers"])


@pytest.mark.parametrize("strategy", [MEAN, FOUR], ids=["one", "four"])
def test_what_was_put_back_was_not_written(ranks, strategy):
    job = Fit(Options(batch_norm=True), strategy)
    expected, result = ranks(1).run(fit, job, 1)[0], ranks(1).run(with_callbacks, job, 1, ["puts back"])[0]
    assert not same_bits(result["buffers"], expected["buffers"])
    assert not same_bits(result["parameters"], expected["parameters"])
