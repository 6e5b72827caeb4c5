"""Law 10: Storm(beta=1), whose second pass really runs, equals Gradient() in everything the user can see, bit for bit."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import Gradient, Storm
from tests.scenarios import Points, same_bits
from tests.watching import LARGE, Case, Watched, differences, watch


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
        first = [one for one in self.network[:-1].parameters()]
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
    "sparse": Case(Sparse),
    "thaws": Case(Backbone, callbacks=lambda: [Thaws()]),
    "SWA": Case(callbacks=swa, trainer={"max_epochs": 3}),
    "EMA": Case(callbacks=lambda: [EMAWeightAveraging(decay=0.5)], trainer={"enable_checkpointing": True}),
}


def compared(name: str, strategy: dict, devices: int) -> tuple[list[str], int, int]:
    """Return what differs on this rank between one pass and two, and how many passes there were."""
    one, two = (watch(CASES[name], {**strategy, "estimator": own}, devices) for own in (Gradient(), Storm(beta=1)))
    passes = one.pop("passes"), two.pop("passes")
    return differences(one, two), *passes


ALONE = {"f": 0, "aggregator": Mean(), "workers": None}


@pytest.mark.parametrize("name", CASES)
def test_one_worker(ranks, name):
    ((different, once, twice),) = ranks(1).run(compared, name, ALONE, 1)
    assert not different
    assert twice == 2 * once - (6 if name == "SWA" else 0) > once > 0, "batch norm's passes after SWA have no gradient"
