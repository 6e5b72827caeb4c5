"""Law 10: Storm(beta=1), whose second pass really runs, equals Gradient() in everything the user can see, bit for bit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.attacks import LabelFlip
from lightning_byz.estimators import Estimator, Gradient, Storm
from tests.scenarios import Points
from tests.watching import LARGE, Case, Count, Watched, differences, watch


class Recomputes(Watched):
    def scores(self, points):
        return checkpoint(self.network, points, use_reentrant=False)


class RecomputesReentrant(Watched):
    def scores(self, points):
        return checkpoint(self.network, points.clone().requires_grad_(), use_reentrant=True)


class SometimesNone(Watched):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else {"loss": loss}


class Dicts(Watched):
    """Its batches are dicts."""

    def train_dataloader(self):
        def collate(samples):
            points, labels = zip(*samples, strict=True)
            return {"points": torch.stack(points), "rest": {"labels": torch.tensor(labels)}}

        return DataLoader(Points(self.samples), batch_size=self.batch_size, collate_fn=collate)

    def training_step(self, batch, batch_idx):
        batch["seen"] = batch.get("seen", 0) + 1
        assert batch["seen"] == 1
        return super().training_step((batch["points"], batch.pop("rest")["labels"]), batch_idx)


class TupleOfDicts(Dicts):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch, {"weight": torch.ones(1)})

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx) * batch[1]["weight"].mul_(2.0).sum()


class Tied(Watched):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(8, 12)
        self.again.weight = self.network[0].weight

    def scores(self, points):
        return self.network[1:](self.network[0](points) + self.again(points))


class Complex(Watched):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def scores(self, points):
        return super().scores(torch.fft.irfft(torch.fft.rfft(points) * self.filter, n=8))


class ChannelsLast(Watched):
    def build(self):
        layers = nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(3, 2)
        return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), *layers).to(memory_format=torch.channels_last)


class Normed(Watched):
    def build(self):
        first, second = parametrizations.spectral_norm(nn.Linear(8, 12)), parametrizations.weight_norm(nn.Linear(12, 5))
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), spectral_norm(nn.Linear(5, 2)))


class Unused(Watched):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 2)

    def scores(self, points):
        return self.other(points) if self.steps % 3 == 2 else self.network(points)


class Groups(Watched):
    def configure_optimizers(self):
        last = [*self.network[-1].parameters()]
        first = list(self.network[:-1].parameters())
        return torch.optim.AdamW([{"params": last, "lr": 0.01}, {"params": first, "weight_decay": 0.1}], lr=0.05)


class Widest(Watched):
    """Batch norm of so many channels that its running means are large."""

    def build(self):
        return nn.Sequential(nn.Linear(8, LARGE), nn.BatchNorm1d(LARGE), nn.ReLU(), nn.Linear(LARGE, 2))


class Born(Watched):
    """Has a buffer, a layer and a parameter that are made at its first step."""

    def scores(self, points):
        if not hasattr(self, "born"):
            self.register_buffer("born", points.detach().mean(0), persistent=False)
            self.late = nn.Linear(8, 8)
            self.register_parameter("shift", nn.Parameter(torch.zeros(8)))
        return self.network(self.late(points) + self.born + self.shift)


class LargeTeacher(Watched):
    """Moves large frozen weights towards the trained ones as MoCo's authors and DINO's do, past the tensors' versions."""

    def __init__(self):
        super().__init__()
        self.slow, self.slower = (nn.Linear(8, LARGE // 8 + 1, bias=False).requires_grad_(False) for _ in range(2))

    def remember(self, points, loss):
        super().remember(points, loss)
        self.slow.weight.data = self.slow.weight.data * 0.9 + 0.1 * float(self.network[0].bias.detach().mean())
        self.slower.weight.data.mul_(0.9).add_(0.1 * loss.item())


class HooksItself(Watched):
    """Hangs a hook onto a layer at its first step, and leaves it there."""

    def scores(self, points):
        if not hasattr(self, "handle"):
            self.handle = self.network[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
        return self.network(points)


class Perturbs(Watched):
    """Learns a disturbance by hand, outside the optimizer."""

    def __init__(self):
        super().__init__()
        self.delta = torch.zeros(8, requires_grad=True)

    def scores(self, points):
        if self.delta.grad is not None:
            self.delta.data.add_(self.delta.grad.sign(), alpha=0.01)
        return self.network(points + self.delta.to(points.dtype))


class Sparse(Watched):
    """Holds a graph."""

    def __init__(self):
        super().__init__()
        self.graph = torch.eye(8).to_sparse()
        self.rows = torch.eye(8).to_sparse_csr()

    def scores(self, points):
        return self.network((self.rows @ (self.graph @ points.T)).T)


class Backbone(Watched):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(8, 8)

    def scores(self, points):
        return self.network(self.backbone(points))

    def configure_optimizers(self):
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.1, momentum=0.5)


class Few(Watched):
    """For eight workers, which get two batches of two each."""

    samples = 32
    batch_size = 2


class FewRecomputed(Recomputes, Few):
    pass


class FewOrNone(Few):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.trainer.strategy.worker == 3 and batch_idx == 1 else loss


class Places(Watched):
    """Asks the trainer where to write, which is a question to all ranks."""

    def report(self, loss):
        super().report(loss)
        self.table["place"] = Path(self.trainer.log_dir).parts[-2:]


class Thaws(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, initial_denom_lr=1.0)


def swa() -> list[Any]:
    return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)]


CASES = {
    "plain": Case(),
    "accumulation": Case(trainer={"accumulate_grad_batches": 3}),
    "clip by norm": Case(trainer={"gradient_clip_val": 0.2, "gradient_clip_algorithm": "norm"}),
    "clip by value": Case(trainer={"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}),
    "bf16-true": Case(trainer={"precision": "bf16-true"}),
    "float16 with a scaler": Case(scaler=True, trainer={"gradient_clip_val": 0.5}),
    "recomputes": Case(Recomputes),
    "recomputes, reentrant": Case(RecomputesReentrant),
    "None sometimes": Case(SometimesNone),
    "None sometimes, accumulation": Case(SometimesNone, {"accumulate_grad_batches": 2}),
    "dicts": Case(Dicts),
    "tuples of dicts": Case(TupleOfDicts),
    "tied": Case(Tied),
    "complex": Case(Complex),
    "channels last": Case(ChannelsLast),
    "spectral norm, weight norm": Case(Normed),
    "unused at some steps": Case(Unused),
    "two groups": Case(Groups),
    "wide batch norm": Case(Widest, {"max_epochs": 1}),
    "born at the first step": Case(Born),
    "large teachers": Case(LargeTeacher),
    "hooks itself": Case(HooksItself),
    "perturbs": Case(Perturbs),
    "places": Case(Places),
    "sparse": Case(Sparse),
    "thaws": Case(Backbone, callbacks=lambda: [Thaws()]),
    "SWA": Case(callbacks=swa, trainer={"max_epochs": 3}),
    "EMA": Case(callbacks=lambda: [EMAWeightAveraging(decay=0.5)], trainer={"enable_checkpointing": True}),
    "plain, few samples": Case(Few),
    "accumulation, few samples": Case(Few, {"accumulate_grad_batches": 3}),
    "clip by norm, few samples": Case(Few, {"gradient_clip_val": 0.2}),
    "bf16-mixed, few samples": Case(Few, {"precision": "bf16-mixed"}),
    "float16 with a scaler, few samples": Case(Few, scaler=True),
    "recomputes, few samples": Case(FewRecomputed),
    "None sometimes, few samples": Case(FewOrNone),
}


ALONE = {"f": 0, "aggregator": Mean(), "workers": None}
EIGHT = {"f": 2, "aggregator": CoordinateMedian(), "workers": 8, "attackers": [6, 7], "attack": LabelFlip(2)}


def compared(name: str, strategy: dict, devices: int) -> tuple[list[str], int, int]:
    """Return what differs on this rank between one pass and two, and how many passes there were."""
    one, two = (watch(CASES[name], {**strategy, "estimator": own}, devices) for own in (Gradient(), Storm(beta=1)))
    passes = one.pop("passes"), two.pop("passes")
    return differences(one, two), *passes


@pytest.mark.parametrize("name", [name for name in CASES if "few" not in name])
def test_one_worker(ranks, name):
    ((different, once, twice),) = ranks(1).run(compared, name, ALONE, 1)
    assert not different
    assert twice == 2 * once - (6 if name == "SWA" else 0) > once > 0, "batch norm's passes after SWA have no gradient"


@pytest.mark.parametrize(
    "name", ["plain", "accumulation", "float16 with a scaler", "recomputes, reentrant", "None sometimes", "thaws"]
)
def test_one_worker_per_rank(ranks, name):
    for different, once, twice in ranks(2).run(compared, name, ALONE, 2):
        assert not different
        assert twice == 2 * once > 0


@pytest.mark.parametrize(
    "name",
    ["plain", "accumulation", "clip by norm", "bf16-mixed", "float16 with a scaler", "recomputes", "None sometimes"],
)
def test_eight_workers_on_one_rank(ranks, name):
    ((different, once, twice),) = ranks(1).run(compared, f"{name}, few samples", EIGHT, 1)
    assert not different
    assert twice == 2 * once > 0


@pytest.mark.parametrize("world", [2, 4, 8])
def test_eight_workers_on_ranks(ranks, world):
    for different, once, twice in ranks(world).run(compared, "accumulation, few samples", EIGHT, world):
        assert not different
        assert twice == 2 * once > 0


@dataclass(frozen=True)
class Both(Estimator):
    """Sends the gradient, and notes how often its two gradients were the same, and how often not."""

    alike: list[bool] = field(default_factory=list)

    points = 2

    def init(self, like):
        return {}

    def update(self, memory, gradients, *, count):
        first, second = gradients
        self.alike.append(bool(first.any()) and torch.equal(first, second))
        return first, memory


class Still(Watched):
    samples = 32

    def configure_optimizers(self):
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=self.rate)

    def on_train_start(self):
        super().on_train_start()
        for stage in (self.trainer.strategy.estimator, self.trainer.strategy.attack):
            for notes in vars(stage).values() if stage is not None else ():
                notes.clear() if isinstance(notes, list) else None  # of what was tried before the first step

    rate = 0.0


class Moving(Still):
    rate = 0.01


class StillOdd(Still):
    """Layers whose parameters begin anywhere in the vector of all."""

    def build(self):
        layers = nn.Linear(8, 37), nn.BatchNorm1d(37), nn.Dropout(0.3), nn.Linear(37, 131), nn.Linear(131, 61)
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(61, 2))


def noted(module: type[Watched], strategy: dict, devices: int, **trainer: Any) -> list[bool]:
    both = Both()
    watch(Case(module, trainer), {**strategy, "estimator": both}, devices)
    return both.alike


@pytest.mark.parametrize(("module", "alike"), [(Still, True), (StillOdd, True), (Moving, False)])
@pytest.mark.parametrize(("strategy", "world"), [(ALONE, 1), (ALONE, 2), (EIGHT, 1), (EIGHT, 2)])
def test_at_a_learning_rate_of_zero_both_gradients_are_the_same(ranks, module, alike, strategy, world):
    for noticed in ranks(world).run(noted, module, strategy, world):
        first = len(noticed) if alike else 8 // world if strategy is EIGHT else 1
        assert len(noticed) > first or alike
        assert all(noticed[:first]), "at the first step there is no earlier point"
        assert not any(noticed[first:])


def test_poison_is_the_same_in_both_passes(ranks):
    """Also where it is drawn."""
    strategy = {**EIGHT, "attack": Noise()}
    ((noticed, drawn),) = ranks(1).run(poisoned_twice, strategy)
    assert all(noticed)
    assert len(drawn) == 2 * len(set(drawn)) == 2 * 4
    assert drawn[::2] == drawn[1::2]


@dataclass(frozen=True)
class Noise(LabelFlip):
    """Disturbs its batches, in place."""

    classes: int = 2
    drawn: list[float] = field(default_factory=list)

    def poison(self, batch, *, generator):
        noise = torch.randn(batch[0].shape, generator=generator)
        self.drawn.append(float(noise.sum()))
        batch[0].add_(noise)
        return batch


def poisoned_twice(strategy: dict) -> tuple[list[bool], list[float]]:
    return noted(Still, strategy, 1), strategy["attack"].drawn


class SeesTwo(Watched):
    """What does see two passes: forward hooks, hooks of tensors, ``backward``, and plain objects."""

    def __init__(self):
        super().__init__()
        self.counts = {name: Count() for name in ("forward hook", "tensor hook", "backward", "training_step")}
        self.network[0].register_forward_hook(lambda *_: self.note("forward hook"))
        self.network[0].weight.register_hook(lambda _: self.note("tensor hook"))

    def note(self, name: str) -> None:
        self.counts[name].number += 1

    def backward(self, loss, *values, **named):
        self.note("backward")
        super().backward(loss, *values, **named)

    def training_step(self, batch, batch_idx):
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def on_train_end(self):
        super().on_train_end()
        self.numbers = {name: count.number for name, count in self.counts.items()}


def counted(estimator: Estimator) -> dict[str, int]:
    return watch(Case(SeesTwo), {**ALONE, "estimator": estimator}, 1)["attributes"]["numbers"]


def test_what_sees_two_passes(ranks):
    (once,), (twice,) = (ranks(1).run(counted, own) for own in (Gradient(), Storm(beta=1)))
    assert len(set(once.values())) == 1
    assert twice == {name: 2 * count for name, count in once.items()}
