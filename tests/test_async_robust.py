"""Workers at their own pace, in processes: what they learn, what they cannot do, how they end, and what a resume finds."""

import os
import re
import signal
import time
import warnings
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import CTMA, Bulyan, CoordinateMedian, Mean
from lightning_byz.attacks import LabelFlip, ReverseGradient, SignFlip
from lightning_byz.callbacks import WorkerMonitor
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.estimators import Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime
from lightning_byz.strategies import AsyncRobustStrategy, RobustStrategy
from lightning_byz.strategies.async_checks import WORDS, check_async_arguments

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Line(pl.LightningModule):
    """A line through points; what its step does besides is the test's choice."""

    def __init__(self, besides: Callable[[pl.LightningModule], object] | None = None, *, norm: bool = False) -> None:
        super().__init__()
        self.besides = besides
        torch.manual_seed(0)
        layers = [nn.Linear(2, 1)]
        self.layers = nn.Sequential(nn.BatchNorm1d(2), *layers) if norm else nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        points, values = batch
        if self.besides is not None:
            self.besides(self)
        loss = nn.functional.mse_loss(self.layers(points)[:, 0], values)
        self.log("train_loss", loss)
        return loss

    def train_dataloader(self) -> DataLoader:
        points = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)) + 3.0
        return DataLoader(TensorDataset(points, points @ torch.tensor([1.0, -2.0])), batch_size=4, shuffle=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.002)


class At(pl.Callback):
    """Does something after so many updates."""

    def __init__(self, *deeds: tuple[int, Callable[[AsyncRobustStrategy], object]]) -> None:
        self.deeds = dict(deeds)
        self.pids: dict[int, int] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.pids |= trainer.strategy.served.engine.pids
        if trainer.global_step in self.deeds:
            self.deeds[trainer.global_step](trainer.strategy)


def strategy(workers: int = 4, f: float = 1, **options) -> AsyncRobustStrategy:
    pace = {"deadline": 10.0, "start_method": "fork", "seed": 1, "aggregator": CTMA(CoordinateMedian())}
    return AsyncRobustStrategy(workers=workers, f=f, **{**pace, **options})


def fit(
    used: AsyncRobustStrategy | RobustStrategy,
    module: pl.LightningModule | None = None,
    *,
    updates: int = 60,
    ckpt_path: str | None = None,
    **options,
) -> pl.Trainer:
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=used, max_steps=updates, **{**QUIET, **options})
    trainer.fit(module or Line(), ckpt_path=ckpt_path)
    return trainer


def accuracy(used: AsyncRobustStrategy | RobustStrategy, updates: int, seed: int = 1, **options) -> float:
    pl.seed_everything(seed, verbose=False)
    module, data = DigitsClassifier(learning_rate=0.1), DigitsData(batch_size=16)
    about = {"limit_val_batches": 0, "num_sanity_val_steps": 0, **QUIET, **options}
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=used, max_steps=updates, max_epochs=-1, **about)
    trainer.fit(module, datamodule=data)
    images, labels = data.validation.tensors
    return float((module(images).argmax(1) == labels).float().mean())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


# ---------------------------------------------------------------------------- training


def test_accuracy_with_a_slow_and_a_lying_worker() -> None:
    """As good as lock-step on as many gradients, within two points; the mean of the same messages is not."""
    lock = RobustStrategy(
        workers=6,
        f=1,
        aggregator=CTMA(CoordinateMedian()),
        estimator=WorkerMomentum(beta=0.9),
        attackers=[5],
        attack=ReverseGradient(factor=10.0),
        seed=1,
    )
    expected = accuracy(lock, 250)
    common = {"estimator": WorkerMomentum(beta=0.9), "attackers": [5], "attack": ReverseGradient(factor=10.0)}
    pace = {"delays": [0.003] * 4 + [0.06, 0.003]}
    assert accuracy(strategy(6, **common, **pace), 1200) >= expected - 0.02
    with pytest.warns(UserWarning, match="no guarantee holds"):
        assert accuracy(strategy(6, aggregator=Mean(), f=0, **common, **pace), 600) < expected - 0.1


def test_the_trainer_is_as_ever() -> None:
    """Steps are updates, values that workers log are logged, hooks run in the serving process."""
    seen = []

    class Hooked(Line):
        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            seen.append((self.trainer.global_step, outputs["loss"].item(), batch.index))

    used = strategy(delays=[0.002] * 4)
    trainer = fit(used, Hooked(), updates=40, callbacks=[WorkerMonitor()])
    assert trainer.global_step == 40
    assert trainer.current_epoch == 2  # 120 points, batches of 4: 30 arrivals an epoch
    assert [step for step, _, _ in seen] == list(range(1, 41))
    assert seen[0][1] > 2 * sum(loss for _, loss, _ in seen[-10:]) / 10
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert sum(used.served.delivered.values()) >= 40
    assert used.rates is not None


def test_an_epoch_has_fewer_updates_where_rules_wait() -> None:
    used = strategy(f=0, every=3, delays=[0.002] * 4)
    trainer = fit(used, updates=20)
    assert trainer.num_training_batches == 10
    assert sum(used.served.delivered.values()) >= 60


def test_double_momentum_with_batch_norm_on_spawned_processes() -> None:
    """Storm evaluates twice at points of its own, and evaluation sees the median of the workers' running statistics."""
    used = strategy(3, f=0, estimator=Storm(beta=0.2), anytime=Anytime(0.1), start_method="spawn", delays=[0.002] * 3)
    trainer = fit(used, Line(norm=True), updates=90)
    module = trainer.lightning_module
    mean = module.layers[0].running_mean
    assert bool(((mean - 3.0).abs() < 1.0).all())
    assert int(module.layers[0].num_batches_tracked) > 5


def test_an_attacker_poisons_its_batches_at_its_worker() -> None:
    used = strategy(4, attackers=[3], attack=LabelFlip(classes=10), delays=[0.002] * 4)
    assert accuracy(used, 200) > 0.6


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("besides", "name"),
    [
        (lambda module: module.trainer.datamodule, "datamodule"),
        (lambda module: module.optimizers(), "strategy"),
        (lambda module: module.lr_schedulers(), "lr_scheduler_configs"),
        (lambda module: module.logger, "logger"),
        (lambda module: module.trainer.train_dataloader, "train_dataloader"),
        (lambda module: module.all_gather(torch.ones(1)), "strategy"),
    ],
)
def test_what_a_worker_does_not_have_is_named_before_the_first_update(besides, name) -> None:
    module = Line(besides)
    before = module.layers[0].weight.clone()
    with pytest.raises(RuntimeError, match=f"(?s)could not take its first turn.*self.trainer.{name}, which only"):
        fit(strategy(2, f=0), module)
    assert torch.equal(module.layers[0].weight, before)


def test_what_a_worker_has() -> None:
    def besides(module: pl.LightningModule) -> None:
        assert module.trainer.training
        assert module.trainer.max_steps == 30
        module.log_dict({"epoch": float(module.current_epoch), "step": float(module.global_step)})
        module.print("nothing")

    trainer = fit(strategy(2, f=0, delays=[0.002] * 2), Line(besides), updates=30)
    assert 20 <= trainer.callback_metrics["step"] < 30


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"workers": 0}, ValueError, "workers=0"),
        ({"every": 0}, ValueError, "every=0: give a whole number of 1 or more"),
        ({"deadline": 0}, ValueError, "deadline=0: give seconds above 0"),
        ({"restarts": -1}, ValueError, "restarts=-1"),
        ({"byzantine_share": 0.5}, ValueError, "must be below one half"),
        ({"delays": [1.0]}, ValueError, "of each of the 4 workers"),
        ({"age_decay": 0}, ValueError, "age_decay=0"),
        ({"attackers": [1]}, ValueError, "without an attack"),
    ],
)
def test_arguments_are_refused(options, error, match) -> None:
    with pytest.raises(error, match=match):
        strategy(**options)


def test_words_are_refused() -> None:
    numbers = {"every": 1, "deadline": 1.0, "restarts": 0, "threads": 1}
    words = {"engine": "processes", "start_method": "spawn", "delay_law": "constant"}
    for name, allowed in WORDS.items():
        with pytest.raises(ValueError, match=re.escape(f"{name}='other': give one of {list(allowed)}.")):
            check_async_arguments(2, None, None, None, numbers=numbers, words={**words, name: "other"})


def test_runs_are_refused_before_the_first_step() -> None:
    class ByHand(Line):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    class Streamed(Line):
        def train_dataloader(self):
            return DataLoader(Stream())

    for used, module, options, match in (
        (strategy(), ByHand(), {}, "manual optimization"),
        (strategy(), Streamed(), {"max_epochs": 1}, "map-style dataset"),
        (strategy(), Line(), {"accumulate_grad_batches": 2}, "one batch's gradient at a time"),
        (strategy(), Line(), {"reload_dataloaders_every_n_epochs": 1}, "to the end of the run"),
        (strategy(attackers=[4], attack=SignFlip()), Line(), {}, "no worker ids"),
    ):
        with pytest.raises(ValueError, match=match):
            fit(used, module, **options)
    with pytest.raises(ToleranceError, match="Bulyan"):
        fit(strategy(8, aggregator=Bulyan()))


# ---------------------------------------------------------------------------- faults


def test_a_killed_worker_is_named_and_keeps_its_weight() -> None:
    times = {}

    def kill(used: AsyncRobustStrategy) -> None:
        times["killed"] = time.monotonic()
        os.kill(used.served.engine.pids[1], signal.SIGKILL)

    used, at = strategy(delays=[0.01] * 4), At((60, kill))
    with pytest.warns(UserWarning, match="Worker 1 is gone: its process was ended by signal 9"):
        fit(used, updates=200, callbacks=[at])
    ended = next(when for when, event in used.served.service.events if event.word == "ended")
    assert ended - times["killed"] < 5.0
    weights = used.report.census.weights
    assert 0 < weights[1] < min(weights[0], weights[2], weights[3])
    assert all(gone(pid) for pid in at.pids.values())


def test_a_stopped_worker_is_left_out_and_may_come_back() -> None:
    away = []
    used = strategy(delays=[0.01] * 4, deadline=1.0)

    def pause(used: AsyncRobustStrategy) -> None:
        os.kill(used.served.engine.pids[2], signal.SIGSTOP)

    def look(used: AsyncRobustStrategy) -> None:
        away.append((used.served.service.away, used.served.delivered[2]))
        os.kill(used.served.engine.pids[2], signal.SIGCONT)

    at = At((60, pause), (560, look))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(used, updates=900, callbacks=[at])
    texts = " ".join(str(one.message) for one in said)
    assert "Worker 2 has sent nothing for 1 s and is left out" in texts
    assert "Worker 2 is back." in texts
    assert away[0][0] == [2]
    assert used.served.delivered[2] > away[0][1] + 10
    assert used.served.service.away == []
    assert all(gone(pid) for pid in at.pids.values())


def test_a_stopped_worker_ends_with_the_run() -> None:
    used = strategy(delays=[0.005] * 4)
    at = At((30, lambda used: os.kill(used.served.engine.pids[0], signal.SIGSTOP)))
    fit(used, updates=60, callbacks=[at])
    assert all(gone(pid) for pid in at.pids.values())


def test_a_restarted_worker_takes_its_place() -> None:
    used = strategy(delays=[0.01] * 4, restarts=1, estimator=WorkerMomentum(beta=0.9))
    at = At((40, lambda used: os.kill(used.served.engine.pids[3], signal.SIGKILL)))
    with pytest.warns(UserWarning, match="Worker 3 is (gone|started again)"):
        fit(used, updates=300, callbacks=[at])
    words = [event.word for _, event in used.served.service.events if event.worker == 3]
    assert words[:2] == ["came", "ready"]
    assert {"ended", "restarted"} <= set(words)
    assert words.count("ready") == 2
    assert used.served.delivered[3] > 20


def test_an_error_later_ends_its_worker_alone() -> None:
    def besides(module: pl.LightningModule) -> None:
        if module.global_step > 50 and module.besides_worker == 1:
            raise ArithmeticError("a bad sample")

    class Own(Line):
        besides_worker = -1

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.besides_worker = WORKER_OF.get(os.getpid(), -1)
            return batch

    used = strategy(delays=[0.01] * 4)
    at = At((40, lambda used: os.kill(used.served.engine.pids[1], signal.SIGUSR1)))

    def note(*_) -> None:
        WORKER_OF[os.getpid()] = 1

    before = signal.signal(signal.SIGUSR1, note)
    try:
        with pytest.warns(UserWarning, match="(?s)Worker 1 has ended with an error.*a bad sample"):
            fit(used, Own(besides), updates=150, callbacks=[at])
    finally:
        signal.signal(signal.SIGUSR1, before)


WORKER_OF: dict[int, int] = {}


def test_a_run_without_workers_ends() -> None:
    used = strategy(2, f=0, delays=[0.01] * 2)

    def kill(used: AsyncRobustStrategy) -> None:
        for pid in used.served.engine.pids.values():
            os.kill(pid, signal.SIGKILL)

    with pytest.warns(UserWarning, match="is gone"), pytest.raises(TooManyFaults, match="No worker is left"):
        fit(used, callbacks=[At((20, kill))])


# ---------------------------------------------------------------------------- resume


@pytest.mark.parametrize("estimator", [WorkerMomentum(beta=0.9), Storm(beta=0.2)])
def test_a_resume_finds_every_workers_memory(tmp_path, estimator) -> None:
    path = str(tmp_path / "half.ckpt")
    used = strategy(3, f=0, estimator=estimator, delays=[0.005] * 3)
    first = fit(used, updates=40)
    first.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]
    memories = saved["memories"]
    assert sorted(memories) == [0, 1, 2]
    assert all(
        any(value.abs().sum() > 0 for value in own["estimator"].values() if torch.is_tensor(value))
        for own in memories.values()
    )
    again = strategy(3, f=0, estimator=estimator, delays=[0.005] * 3)
    trainer = fit(again, updates=60, ckpt_path=path)
    assert trainer.global_step == 60
    told = again.served._remembered
    assert all(told[worker].adopted > memories[worker]["adopted"]["count"] > 0 for worker in range(3))
    assert again.report.census.weights[0] > saved["counts"]["accepted"][0]
    lock = RobustStrategy(workers=3, f=0, aggregator=Mean(), estimator=estimator)
    with pytest.raises(ValueError, match="The checkpoint"):
        fit(lock, updates=80, ckpt_path=path)


def test_checkpoints_and_validation_while_workers_go_on(tmp_path) -> None:
    """Files are whole in the middle of a run, also with more workers than the server has places for messages."""

    class Validated(Line):
        def validation_step(self, batch, batch_idx) -> None:
            points, values = batch
            self.log("val_loss", nn.functional.mse_loss(self.layers(points)[:, 0], values))

        def val_dataloader(self) -> DataLoader:
            return DataLoader(self.train_dataloader().dataset, batch_size=40)

    files = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=20, save_top_k=-1)
    used = strategy(7, delays=[0.002] * 6 + [0.1], estimator=WorkerMomentum(beta=0.9))
    options = {"enable_checkpointing": True, "callbacks": [files], "gradient_clip_val": 1.0}
    trainer = fit(used, Validated(norm=True), updates=60, **options)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert len(names) == 3
    for name in names:
        saved = torch.load(tmp_path / name, weights_only=True)
        assert sorted(saved["lightning_byz"]["optimizers"][0]["memories"]) == list(range(7))
        assert saved["state_dict"]["layers.0.running_mean"].abs().sum() > 0
