"""Manual optimization with one worker per rank: what training_step sees, and what it cannot do."""

import pytest
import torch
from torch import nn

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import WorkerMomentum
from tests.ranks import RankFailure
from tests.scenarios import Classifier, Fit, Options, fit, largest_difference, same_bits

MEAN = {"f": 0, "aggregator": Mean()}


class ByHand(Classifier):
    """One optimizer, with clipping and an edit between the backward pass and the step, whose norm it keeps."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.automatic_optimization = False
        self.norms: list[float] = []

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_after_backward(self) -> None:
        self.norms.append(float(sum(p.grad.norm() for p in self.parameters() if p.grad is not None)))

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.norms.append(float(nn.utils.clip_grad_norm_(self.parameters(), 0.1)))
        self.network[0].bias.grad.mul_(0.5)
        optimizer.step()
        self.log("norm", self.norms[-1])


class Accumulates(ByHand):
    """Steps at every third batch, the passes before inside no_sync()."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 3 < 2:
            with self.trainer.model.no_sync():
                self.manual_backward(self.loss(batch))
            return
        self.manual_backward(self.loss(batch))
        self.optimizers().step()
        self.optimizers().zero_grad()


class Raw(ByHand):
    """Steps torch's optimizer itself, and zeroes in place."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad(set_to_none=False)
        self.manual_backward(self.loss(batch))
        optimizer.step()


class PlainBackward(ByHand):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


class NeverZeroes(ByHand):
    """Lets averaged gradients add up over steps, and gradients of no_sync() with them."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 2:
            with self.trainer.model.no_sync():
                self.manual_backward(self.loss(batch))
            return
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class Closure(ByHand):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    def training_step(self, batch, batch_idx):
        def closure():
            self.optimizers().zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


class Adversaries(ByHand):
    """Two optimizers; the first one's loss reaches the second's parameters, which then forget it."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network[0].parameters(), lr=0.1), torch.optim.Adam(self.network[3:].parameters())

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class Toggles(Adversaries):
    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            self.manual_backward(self.loss(batch))
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)


class ClampsWeights(ByHand):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        for parameter in self.parameters():
            parameter.data.clamp_(-0.3, 0.3)


class Wrong(ByHand):
    """One mistake."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.go_wrong(optimizer, batch)


class CallsBackward(Wrong):
    def go_wrong(self, optimizer, batch):
        self.loss(batch).backward()
        optimizer.step()


class MovesParameters(Wrong):
    def go_wrong(self, optimizer, batch):
        self.loss(batch).backward()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter -= 0.1 * parameter.grad


class TwoPasses(Wrong):
    def go_wrong(self, optimizer, batch):
        self.manual_backward(self.loss(batch))
        self.manual_backward(self.loss(batch))
        optimizer.step()


class NeverSynchronizes(Wrong):
    def go_wrong(self, optimizer, batch):
        with self.trainer.model.no_sync():
            self.manual_backward(self.loss(batch))
        optimizer.step()


def by_hand(job: Fit, devices: int):
    made = []
    kind = job.module

    def module(options):
        made.append(kind(options))
        return made[0]

    job.module = module  # type: ignore[assignment]
    return fit(job, devices) | {"norms": made[0].norms, "copied": not hasattr(made[0], "no_sync")}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("module", [ByHand, Accumulates, Raw, Closure, Adversaries, Toggles, ClampsWeights])
def test_training_by_hand_sees_what_it_sees_under_ddp(ranks, module, world):
    options = Options(unused=module is Toggles)
    expected = ranks(world).run(by_hand, Fit(options, module=module), world)
    for result, plain in zip(
        ranks(world).run(by_hand, Fit(options, MEAN, module=module), world), expected, strict=True
    ):
        assert not same_bits(result["parameters"], plain["parameters"])
        assert result["norms"] == pytest.approx(plain["norms"], rel=1e-6), (
            "gradients nobody zeroed are added after the mean"
        )
        assert result["global_step"] == plain["global_step"]
        assert result["copied"], "no_sync is gone after the fit"
    start = module(options).state_dict()
    assert same_bits({name: value.detach() for name, value in expected[0]["parameters"].items()}, start)


def test_gradients_that_nobody_zeroes_add_up_as_under_ddp(ranks):
    expected = ranks(2).run(by_hand, Fit(module=NeverZeroes), 2)
    for result, plain in zip(ranks(2).run(by_hand, Fit(strategy=MEAN, module=NeverZeroes), 2), expected, strict=True):
        assert largest_difference(result["parameters"], plain["parameters"]) < 1e-5, "sums in another order"
        assert result["global_step"] == plain["global_step"] == 12


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (CallsBackward, "optimizer 0 \\(SGD\\) stepped on gradients that no rule has seen"),
        (NeverSynchronizes, "optimizer 0 \\(SGD\\) stepped on gradients that no rule has seen"),
        (MovesParameters, "MovesParameters.training_step changed network.0.weight without aggregation"),
        (TwoPasses, "A second backward pass reached the parameters of optimizer 0"),
    ],
)
def test_gradients_that_no_rule_has_seen_are_refused_at_the_first_batch(ranks, module, sentence):
    with pytest.raises(RankFailure, match=sentence) as caught:
        ranks(2).run(fit, Fit(strategy=MEAN, module=module), 2)
    assert set(caught.value.failures) == {0, 1}


class Detours(ByHand):
    """Runs a backward pass that nobody steps on, before the one that counts."""

    def training_step(self, batch, batch_idx):
        self.manual_backward(100 * self.loss(batch))
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()
        self.optimizers().zero_grad()


class Straight(ByHand):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))
        self.optimizers().step()
        self.optimizers().zero_grad()


def test_a_plain_backward_pass_is_aggregated_at_the_step(ranks):
    first, second = (ranks(2).run(fit, Fit(strategy=MEAN, module=m), 2) for m in (PlainBackward, Straight))
    for result in first:
        assert not same_bits(result["parameters"], second[0]["parameters"])


def test_what_nobody_stepped_on_is_not_remembered(ranks):
    strategy = {"f": 0, "aggregator": CoordinateMedian(), "estimator": WorkerMomentum(0.9)}
    first, second = (ranks(2).run(fit, Fit(strategy=strategy, module=m), 2)[0] for m in (Detours, Straight))
    assert not same_bits(first["parameters"], second["parameters"])


class LooksAtGradients(Classifier):
    """Has its gradients computed before the backward pass, without leaving them anywhere."""

    def on_before_backward(self, loss):
        self.log("norm", torch.autograd.grad(loss, self.network[0].weight, retain_graph=True)[0].norm())


class SharedParameters(ByHand):
    """Two optimizers over the same parameters, in turn."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.Adam(self.parameters())

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


@pytest.mark.parametrize("module", [LooksAtGradients, SharedParameters])
def test_gradients_meet_once_they_are_there(ranks, module):
    expected = ranks(2).run(fit, Fit(module=module), 2)
    for result, plain in zip(ranks(2).run(fit, Fit(strategy=MEAN, module=module), 2), expected, strict=True):
        assert not same_bits(result["parameters"], plain["parameters"])


class Mixes(Wrong):
    def go_wrong(self, optimizer, batch):
        self.manual_backward(self.loss(batch))
        self.loss(batch).backward()
        optimizer.step()


class MixesAndForgets(Wrong):
    def go_wrong(self, optimizer, batch):
        self.manual_backward(self.loss(batch))
        self.loss(batch).backward()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_what_is_zeroed_is_forgotten(ranks):
    first, second = (ranks(2).run(fit, Fit(strategy=MEAN, module=m), 2)[0] for m in (MixesAndForgets, Straight))
    assert not same_bits(first["parameters"], second["parameters"])


class Shifts(ByHand):
    """One rank's parameters jump, where torch's own optimizer steps."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        if batch_idx == 4 and self.global_rank == 1:
            self.network[0].bias.data.add_(1.0)


@pytest.mark.parametrize(
    ("module", "strategy", "sentence"),
    [(Mixes, MEAN, "gradients that no rule has seen"), (Shifts, {**MEAN, "digest_every": 3}, "step 6|6 steps")],
)
def test_ranks_do_not_part_in_silence(ranks, module, strategy, sentence):
    with pytest.raises(RankFailure, match=sentence) as caught:
        ranks(2).run(fit, Fit(strategy=strategy, module=module), 2)
    assert set(caught.value.failures) == {0, 1}
