"""Anytime: the module at a running average of the iterates, in plain loops and through the Trainer."""

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.attacks import SignFlip
from lightning_byz.optimizers import Anytime, averaging
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Classifier, Fit, Options, fit, same_bits

W, T = averaging.ITERATE, averaging.STEP
HONEST = {"f": 0, "aggregator": Mean()}
SCHEDULES = {
    "theory": (Anytime(), lambda t: (2 / (t + 2), t)),
    "constant": (Anytime(0.1), lambda t: (0.1, 1)),
    "constants": (Anytime(0.1, alpha=2.5), lambda t: (0.1, 2.5)),
    "released": (Anytime("released"), lambda t: (max(round(2 / (t + 1), 3), 0.01), 1)),
    "scaled released": (Anytime("released", alpha=3), lambda t: (max(round(2 / (t + 1), 3), 0.01), 3)),
}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 2))


def gradients(module: nn.Module, step: int) -> None:
    draws = torch.Generator().manual_seed(step)
    module.zero_grad()
    module(torch.randn(16, 8, generator=draws)).square().mean().backward()


def snapshot(optimizer: Optimizer) -> list[tuple[Tensor, Tensor | None, int]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state.get(p, {}) for p in parameters]
    return [
        (p.detach().clone(), state[W].clone() if W in state else None, state.get(T, 0))
        for p, state in zip(parameters, states, strict=True)
    ]


def alike(first: list[Any], second: list[Any]) -> bool:
    return all(
        torch.equal(x, other) and t == count and (w is then if w is None or then is None else torch.equal(w, then))
        for (x, w, t), (other, then, count) in zip(first, second, strict=True)
    )


# ------------------------------------------------------------------ the definition


def test_schedules() -> None:
    """As in ALGORITHMS: 2 / (t + 2) with alpha t; a number; the released floor, whose steps are not multiplied."""
    steps = (1, 2, 3, 4, 10, 198, 199, 10_000)
    assert [Anytime().schedule(t) for t in steps[:4]] == [(2 / 3, 1), (0.5, 2), (0.4, 3), (1 / 3, 4)]
    assert [Anytime("released").schedule(t)[0] for t in steps] == [1.0, 0.667, 0.5, 0.4, 0.182, 0.01, 0.01, 0.01]
    assert {Anytime("released").schedule(t)[1] for t in steps} == {1.0}
    assert {Anytime(0.1).schedule(t) for t in steps} == {(0.1, 1.0)}
    assert Anytime("theory") == Anytime() == Anytime(None)
    sums = [sum(range(1, t + 2)) for t in steps]  # gamma_t is what alpha_{t+1} is of the sum of all alphas
    assert [Anytime().schedule(t)[0] for t in steps] == pytest.approx([(t + 1) / s for t, s in zip(steps, sums)])  # noqa: B905


def restated(name: str, start: Any, gradient: Callable[[Any, int], Any], *, lr: float, decay: float, steps: int) -> Any:
    """Return x and w after each step of SGD, in float64 and by the formulas."""
    rule, x, w, told = SCHEDULES[name][1], np.array(start), np.array(start), []
    for t in range(1, steps + 1):
        gamma, alpha = rule(t)
        w = w - alpha * lr * (gradient(x, t) + decay * x)
        x = (1 - gamma) * x + gamma * w
        told.append((x, w))
    return told


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_trajectories_on_a_convex_problem(name: str, decay: float) -> None:
    draws = np.random.default_rng(0)
    matrix, target = draws.normal(size=(12, 6)), draws.normal(size=12)
    x = nn.Parameter(torch.from_numpy(draws.normal(size=6)))
    optimizer = torch.optim.SGD([x], lr=1e-3, weight_decay=decay)
    told = restated(name, x.detach().numpy().copy(), lambda x, t: matrix.T @ (matrix @ x - target), lr=1e-3, decay=decay, steps=200)  # fmt: skip
    SCHEDULES[name][0].attach(optimizer)
    for point, iterate in told:
        optimizer.zero_grad()
        (0.5 * (torch.from_numpy(matrix) @ x - torch.from_numpy(target)).square().sum()).backward()
        optimizer.step()
        assert np.abs(x.detach().numpy() - point).max() < 1e-10
        assert np.abs(optimizer.state[x][W].numpy() - iterate).max() < 1e-10
    assert optimizer.state[x][T] == 200
    assert float((x - optimizer.state[x][W]).detach().abs().max()) > 1e-6  # the module is not at the iterate


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gamma_of_one_is_no_averaging(name: str) -> None:
    modules = [network(), network()]
    plain, averaged = (OPTIMIZERS[name](module.parameters()) for module in modules)
    handle = Anytime(gamma=1).attach(averaged)
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 3, 0.5) for one in (plain, averaged)]
    for step in range(8):
        for module, optimizer, scheduler in zip(modules, (plain, averaged), schedulers, strict=True):
            gradients(module, step)
            optimizer.step()
            scheduler.step()
        own, other = ([p.detach().view(torch.int32) for p in module.parameters()] for module in modules)
        assert all(map(torch.equal, own, other))
    assert all(map(torch.equal, modules[0].parameters(), [averaged.state[p][W] for p in modules[1].parameters()]))
    for p, q in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        known = {key: value for key, value in averaged.state[q].items() if key not in (W, T)}
        assert known.keys() == plain.state[p].keys()
        assert all(torch.equal(torch.as_tensor(known[key]), torch.as_tensor(plain.state[p][key])) for key in known)
    handle.remove()


def test_bits_depend_neither_on_chunks_nor_on_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=draws) for size in (1, 7, 5000, 70_001)]
    told = []
    for chunk in (64, 2**15, 2**20):
        monkeypatch.setattr(averaging, "CHUNK", chunk)
        for weights in ((0.1, 1.0), (0.7, 1.0), (0.4, 3.0)):
            threes = [[one.clone(), one.flip(0), one.roll(1)] for one in start]
            for three in threes:
                averaging.move_in_chunks(*three, *weights)
            told.append([one for three in threes for one in three[::2]])
    for weights in ((0.1, 1.0), (0.7, 1.0), (0.4, 3.0)):
        threes = [[one.clone(), one.flip(0), one.roll(1)] for one in start]
        averaging.move_each(*map(list, zip(*threes, strict=True)), *weights)
        told.append([one for three in threes for one in three[::2]])
    for other in range(3, 12):
        assert all(map(torch.equal, told[other % 3], told[other]))


# ------------------------------------------------------------------ steps that are none


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_gradients_moves_nothing(name: str) -> None:
    module = network()
    optimizer = OPTIMIZERS[name](module.parameters())
    Anytime(0.1).attach(optimizer)
    for step in range(2):
        before = snapshot(optimizer)
        optimizer.zero_grad()
        optimizer.step()
        assert alike(snapshot(optimizer), before), "an untaken step moves"
        gradients(module, step)
        optimizer.step()
        assert not alike(snapshot(optimizer), before)
    assert {t for *_, t in before} == {1}


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_a_scaler_skips_moves_nothing(name: str, unscale: bool) -> None:
    module = network()
    optimizer, scaler = OPTIMIZERS[name](module.parameters()), torch.amp.GradScaler("cpu", init_scale=4.0)
    Anytime(0.1).attach(optimizer)
    first = name != "SGD, fused"  # whose momentum torch leaves without values where the first step is skipped
    for step, broken in enumerate([first, False, True, True, False]):
        before = snapshot(optimizer)
        gradients(module, step)
        scaler.scale(torch.ones(1))
        for p in module.parameters():
            p.grad.mul_(4.0)
        if broken:
            module[0].bias.grad[0] = math.inf
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update(4.0)
        assert alike(snapshot(optimizer), before) == broken
    assert {t for *_, t in snapshot(optimizer)} == {2 if first else 3}


def test_each_parameter_counts_its_own_steps() -> None:
    """Frozen, thawed, unused, added later, in another group: an iterate begins with the first step, where the parameter then is."""
    first, second, third = (nn.Parameter(torch.full((2,), float(n))) for n in (1, 2, 3))
    second.requires_grad_(False)
    optimizer = torch.optim.Adam([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}])
    Anytime(0.5).attach(optimizer)

    def step(*trained: nn.Parameter) -> None:
        optimizer.zero_grad()
        sum(p.square().sum() for p in trained).backward()
        optimizer.step()

    step(first)
    assert second not in optimizer.state
    second.requires_grad_(True)
    optimizer.add_param_group({"params": [third]})
    step(first)
    step(second, third)
    step(first, third)
    assert [optimizer.state[p][T] for p in (first, second, third)] == [3, 1, 2]
    assert [int(optimizer.state[p]["step"]) for p in (first, second, third)] == [3, 1, 2]
    torch.testing.assert_close(optimizer.state[second][W], torch.full((2,), 1.8))
    torch.testing.assert_close(second.data, torch.full((2,), 1.9))


@pytest.mark.parametrize("gamma", [1, 0.25])
def test_complex_mixed_and_out_of_order_parameters(gamma: float) -> None:
    draws = torch.Generator().manual_seed(0)
    starts = [
        torch.randn(70_000, dtype=torch.complex64, generator=draws),
        torch.randn(300, 200, generator=draws).t(),
        torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=draws).to(memory_format=torch.channels_last),
        torch.randn(5, generator=draws).bfloat16(),
        torch.tensor(1.5),
        torch.empty(0, 3),
    ]
    parameters, plain = ([nn.Parameter(one.clone()) for one in starts] for _ in range(2))
    optimizer, other = torch.optim.SGD(parameters, lr=0.5), torch.optim.SGD(plain, lr=0.5)
    Anytime(gamma).attach(optimizer)
    iterates = [one.to(torch.promote_types(one.dtype, torch.float64)) for one in starts]
    points = [one.clone() for one in iterates]
    for _ in range(3):
        for p, q in zip(parameters, plain, strict=True):
            p.grad, q.grad = p.detach().clone(), q.detach().clone()
        optimizer.step()
        other.step()
        for place, x in enumerate(points):
            iterates[place] = iterates[place] - 0.5 * x
            points[place] = x + gamma * (iterates[place] - x)
    for p, q, x, w in zip(parameters, plain, points, iterates, strict=True):
        assert optimizer.state[p][W].dtype == p.dtype
        assert optimizer.state[p][W].stride() == p.stride()
        rough = {"rtol": 2e-2, "atol": 1e-2} if p.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(p.detach(), x.to(p.dtype), **rough)
        torch.testing.assert_close(optimizer.state[p][W], w.to(p.dtype), **rough)
        assert gamma != 1 or torch.equal(p, q)


def test_the_memory_is_two_numbers_per_parameter_that_trains() -> None:
    module = network()
    module[0].requires_grad_(False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    handle, places = Anytime().attach(optimizer), []
    for step in range(3):
        gradients(module, step)
        optimizer.step()
        places.append([one.data_ptr() for one in handle._before.values()])
    assert places[0] == places[1] == places[2], "memory is not used again"
    trained = [p for p in module.parameters() if p.requires_grad]
    assert list(handle._before) == trained == list(optimizer.state)
    assert all(set(state) == {"momentum_buffer", W, T} or set(state) == {W, T} for state in optimizer.state.values())


def test_a_closure_and_the_state_of_another_process(tmp_path: Path) -> None:
    """A resumed optimizer goes on with equal bits; without Anytime it trains from the query point."""
    module = network()
    optimizer = OPTIMIZERS["Adam, foreach"](module.parameters())
    Anytime("released").attach(optimizer)
    for step in range(6):
        if step == 3:
            torch.save([module.state_dict(), optimizer.state_dict()], tmp_path / "half.pt")
        optimizer.step(lambda step=step: gradients(module, step))
    for averaged in (True, False):
        again = network()
        other = OPTIMIZERS["Adam, foreach"](again.parameters())
        model, state = torch.load(tmp_path / "half.pt", weights_only=True)
        again.load_state_dict(model)
        other.load_state_dict(state)
        handle = Anytime("released").attach(other) if averaged else None
        for step in range(3, 6):
            gradients(again, step)
            other.step()
        assert alike(snapshot(other), snapshot(optimizer)) == averaged
        assert {state[T] for state in other.state.values()} == {6 if averaged else 3}
        if handle is not None:
            handle.remove()
            handle.remove()
            Anytime().attach(other)  # a removed one is in nobody's way


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("gamma", [0, -0.1, 1.5, math.nan, math.inf, True, False])
def test_gamma_is_a_weight_or_a_schedule(gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma must be a number in \(0, 1\].* or None, 'theory' or 'released'"):
        Anytime(gamma)


@pytest.mark.parametrize("alpha", [0, -1, math.nan, math.inf, True])
def test_alpha_is_a_factor(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number above 0, or None"):
        Anytime(alpha=alpha)


def test_what_cannot_be_averaged() -> None:
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times a step"):
        Anytime().attach(torch.optim.LBFGS([p]))
    sgd = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=r"LightningSGD is a wrapper .* its .optimizer instead"):
        Anytime().attach(pl.core.optimizer.LightningOptimizer(sgd))
    Anytime().attach(sgd)
    with pytest.raises(ValueError, match=r"This SGD has an Anytime already.*remove\(\) the first"):
        Anytime(0.1).attach(sgd)


WITHOUT_TYPES = """
import torch
from lightning_byz import RobustStrategy
from lightning_byz.aggregators import Mean
from lightning_byz.optimizers import Anytime

for make in (
    lambda: Anytime("relased"),
    lambda: Anytime([0.1]),
    lambda: Anytime(alpha="t"),
    lambda: Anytime().attach(torch.optim.SGD),
    lambda: Anytime().attach(torch.nn.Linear(2, 2)),
    lambda: RobustStrategy(f=0, aggregator=Mean(), anytime=Anytime),
    lambda: RobustStrategy(f=0, aggregator=Mean(), anytime=0.1),
):
    try:
        make()
    except (TypeError, ValueError) as error:
        print(type(error).__name__, error)
"""


def test_what_is_of_another_type() -> None:
    """In a process of its own, for tests check the types of arguments before the classes do."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TYPES], capture_output=True, text=True, timeout=60)
    said = done.stdout.splitlines()
    assert [line.split(", of which")[0] for line in said[:2]] == [
        f"ValueError Anytime(gamma={given}): gamma must be a number in (0, 1]" for given in ("'relased'", "[0.1]")
    ]
    assert said[2:] == [
        "ValueError Anytime(alpha='t'): alpha must be a finite number above 0, or None for the schedule's own factor.",
        "TypeError Anytime.attach got the class SGD: give an instance of a torch.optim.Optimizer.",
        "TypeError Anytime.attach got Linear: give an instance of a torch.optim.Optimizer.",
        "TypeError anytime=the class Anytime: give an instance of an Anytime, e.g. Anytime(0.1).",
        "TypeError anytime=0.1: give an instance of an Anytime, e.g. Anytime(0.1).",
    ]


def test_it_is_a_value() -> None:
    for one in (Anytime(), Anytime("released"), Anytime(0.1, alpha=2)):
        assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
        assert hash(one) == hash(copy.copy(one))
    with pytest.raises(TypeError, match="positional"):
        Anytime(0.1, 2)


def test_a_copy_of_an_optimizer_has_no_hooks() -> None:
    module = network()
    optimizer = OPTIMIZERS["SGD"](module.parameters())
    Anytime().attach(optimizer)
    gradients(module, 0)
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert not other._optimizer_step_pre_hooks
        Anytime().attach(other)


# ------------------------------------------------------------------ through the Trainer


class Record(Callback):
    """Keeps the batches, and x, w and t of the first optimizer after each."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.told: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.told.append(snapshot(trainer.optimizers[0]))


OPTIONS = Options(step_scheduler=True, weight_decay=0.01, dropout=0.2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_gamma_of_one_trains_as_none_does(precision: str) -> None:
    """With clipping, accumulation, a scheduler."""
    trainer = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "precision": precision, "max_epochs": 1}
    strategy = {"f": 1, "aggregator": CoordinateMedian(), "workers": 4}
    none, one, other = (
        fit(Fit(OPTIONS, {**strategy, "anytime": anytime}, trainer), 1)
        for anytime in (None, Anytime(gamma=1), Anytime())
    )
    assert not same_bits(none["parameters"], one["parameters"])
    assert none["metrics"] == one["metrics"]
    assert same_bits(none["parameters"], other["parameters"])


def test_the_trainer_takes_the_steps_of_a_plain_loop() -> None:
    """Clipping and schedulers see what they see in a loop by hand; what is validated is the query point."""
    record, options = Record(), Options(step_scheduler=True, weight_decay=0.01, shuffle=False)
    trainer = {"gradient_clip_val": 0.5, "max_epochs": 1, "callbacks": [record]}
    result = fit(Fit(options, {**HONEST, "workers": 1, "anytime": Anytime()}, trainer), 1)
    module = Classifier(options)
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    Anytime().attach(optimizer)
    for (points, labels), told in zip(record.batches, record.told, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(points), labels).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        assert alike(snapshot(optimizer), told)
    module.eval()
    right = torch.cat([(module(points).argmax(1) == labels).float() for points, labels in module.val_dataloader()])
    assert result["metrics"]["val_accuracy"] == pytest.approx(float(right.mean()))


class Quadratic(pl.LightningModule):
    """Least squares of a worker's own batch; keeps what each worker saw."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.arange(4.0))
        self.seen: list[tuple[int, Any, Any]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.strategy.worker, *(one.numpy() for one in batch)))
        return 0.5 * (batch[0] @ self.x - batch[1]).square().mean()

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)

    def train_dataloader(self) -> DataLoader:
        draws = torch.Generator().manual_seed(0)
        points = torch.randn(200, 4, dtype=torch.float64, generator=draws)
        return DataLoader(TensorDataset(points, points.sum(1)), batch_size=2, shuffle=True)


@pytest.mark.parametrize("name", ["theory", "constant", "released"])
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_trajectories_under_sign_flip(name: str, rule: str) -> None:
    """Five workers, of which one flips the sign of its gradient, in float64."""
    module, record = Quadratic(), Record()
    aggregator = Mean() if rule == "mean" else CoordinateMedian()
    attack = {"attackers": [3], "attack": SignFlip()}
    job = {"workers": 5, "f": 1 if rule == "median" else 0, "aggregator": aggregator, "anytime": SCHEDULES[name][0]}
    trainer = quiet(RobustStrategy(**job, **attack), max_epochs=1, precision="64-true", callbacks=[record])
    with pytest.warns(UserWarning, match="no guarantee") if rule == "mean" else pytest.MonkeyPatch.context():
        trainer.fit(module)

    def aggregate(x: Any, t: int) -> Any:
        rows = []
        for worker, points, labels in module.seen[5 * (t - 1) : 5 * t]:
            rows.append((-1 if worker == 3 else 1) * points.T @ (points @ x - labels) / len(labels))
        return np.mean(rows, 0) if rule == "mean" else np.median(rows, 0)

    steps = len(record.told)
    assert len(module.seen) == 5 * steps == 5 * 20
    told = restated(name, np.arange(4.0), aggregate, lr=0.02, decay=0.0, steps=steps)
    for ((x, w, t),), (point, iterate), step in zip(record.told, told, range(steps), strict=True):
        assert t == step + 1
        assert np.abs(x.numpy() - point).max() < 1e-10
        assert np.abs(w.numpy() - iterate).max() < 1e-10


def quiet(strategy: Any = "auto", **arguments: Any) -> pl.Trainer:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(strategy=strategy, devices=1, **{"enable_checkpointing": False, **silent, **arguments})


@pytest.mark.parametrize("scaler", [False, True])
def test_a_step_that_no_worker_made_moves_nothing(scaler: bool) -> None:
    """Both workers' losses are NaN at the third step: without a scaler every .grad is None, with one it is infinite."""
    record = Record()
    options = Options(nan_calls=(4, 5), loss_factor=1e-4 if scaler else 1.0)  # a first scale of 65536 overflows nothing
    strategy = {"f": 0, "aggregator": Mean(), "workers": 2, "anytime": Anytime()}
    fit(Fit(options, strategy, {"max_epochs": 1, "callbacks": [record]}, scaler=scaler), 1)
    assert [told[0][2] for told in record.told[:5]] == [1, 2, 2, 3, 4]
    assert alike(record.told[2], record.told[1])
    assert not alike(record.told[3], record.told[2])


def test_averages_of_others_are_of_the_query_point() -> None:
    """SWA averages what the module holds at the start of its epochs, EMA what it holds after its steps."""
    starts: list[dict[str, Tensor]] = []

    class Starts(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            starts.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    options, strategy = Options(), {**HONEST, "workers": 2, "anytime": Anytime(0.1)}
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    result = fit(Fit(options, strategy, {"max_epochs": 3, "callbacks": [Starts(), swa]}), 1)
    for name, value in result["parameters"].items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in starts]).mean(0))

    record, ema = Record(), EMAWeightAveraging(decay=0.5)
    averaged = fit(Fit(options, strategy, {"max_epochs": 1, "callbacks": [record, ema]}), 1)
    points = [[x for x, *_ in told] for told in record.told]
    for place, value in enumerate(averaged["parameters"].values()):
        expected = points[0][place]
        for later in points[1:]:
            expected = 0.5 * expected + 0.5 * later[place]
        torch.testing.assert_close(value, expected)
    assert not all(torch.equal(*pair) for pair in zip(points[-1], averaged["parameters"].values(), strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("averages", [False, True])
def test_a_resumed_run_equals_one_that_went_on(tmp_path: Path, precision: str, averages: bool) -> None:
    def job(epochs: int, **rest: Any) -> Fit:
        callbacks = [EMAWeightAveraging(decay=0.5)] if averages else []
        strategy = {"f": 1, "aggregator": CoordinateMedian(), "workers": 3, "anytime": Anytime()}
        return Fit(OPTIONS, strategy, {"max_epochs": epochs, "precision": precision, "callbacks": [*callbacks, record]}, **rest)  # fmt: skip

    record, path = Record(), str(tmp_path / "half.ckpt")
    whole, last = fit(job(4), 1), record.told[-1]
    assert {w.dtype for _, w, _ in last} == {torch.float32 if precision == "32-true" else torch.bfloat16}
    if averages:  # its weights are exchanged at the end of a fit, so that the file must be of the middle

        class Saves(Callback):
            def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.current_epoch == 1:
                    trainer.save_checkpoint(path)

        saving = job(4)
        saving.trainer["callbacks"].append(Saves())
        fit(saving, 1)
    else:
        fit(job(2, save=path), 1)
    result = fit(job(4, seed=99, checkpoint=path), 1)
    assert alike(record.told[-1], last)
    assert not same_bits(result["parameters"], whole["parameters"])
    assert {t for *_, t in last} == {result["global_step"]}


def test_a_plain_trainer_resumes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    fit(Fit(Options(), {**HONEST, "workers": 2, "anytime": Anytime()}, {"max_epochs": 1}, save=str(path)), 1)
    module, record = Classifier(Options()), Record()
    quiet(max_epochs=2, callbacks=[record]).fit(module, ckpt_path=path, weights_only=True)
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    for place, (_, w, t) in enumerate(record.told[-1]):
        assert t == saved[place][T]
        assert torch.equal(w, saved[place][W])  # carried along, moved by nobody
    assert len(record.told) == 24


def test_hooks_end_with_the_fit() -> None:
    """The optimizers of a fit can meet another one."""
    module = Quadratic()
    optimizer = module.configure_optimizers()
    module.configure_optimizers = lambda: optimizer
    strategy = RobustStrategy(f=0, aggregator=Mean(), workers=2, anytime=Anytime())
    trainer = quiet(strategy, max_steps=3, precision="64-true")
    for fits in (1, 2):
        trainer.fit_loop.epoch_loop.max_steps = 3 * fits
        trainer.fit(module)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert optimizer.state[module.x][T] == 3 * fits


def test_what_a_run_refuses() -> None:
    class Uses(Quadratic):
        def configure_optimizers(self) -> Optimizer:
            return torch.optim.LBFGS(self.parameters())

    class Twice(Quadratic):
        def configure_optimizers(self) -> Optimizer:
            Anytime(0.1).attach(optimizer := super().configure_optimizers())
            return optimizer

    for kind, sentence in ((Uses, "LBFGS evaluates the loss several"), (Twice, "This SGD has an Anytime already")):
        module = kind()
        with pytest.raises(ValueError, match=sentence):
            quiet(RobustStrategy(f=0, aggregator=Mean(), anytime=Anytime()), precision="64-true").fit(module)
        assert not module.seen


def test_the_start_up_line_names_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Fit(strategy={**HONEST, "workers": 2, "anytime": Anytime("released")}, trainer={"max_steps": 1}), 1)
    assert "Gradient() -> Mean() -> Anytime(gamma='released', alpha=None); no attack" in caplog.text


def test_two_ranks_train_as_one_process_does(ranks: Callable[..., Any]) -> None:
    strategy = {"f": 0, "aggregator": Mean(), "anytime": Anytime()}
    options = Options(dropout=0.2, batch_norm=True, step_scheduler=True)
    alone = fit(Fit(options, {**strategy, "workers": 2}), 1)
    results = ranks(2).run(fit, Fit(options, strategy), 2)
    for result in results:
        assert not same_bits(result["parameters"], alone["parameters"])
    assert alone["global_step"] == 24


class Child(torch.optim.SGD):
    """Has its parent class step, and does something after it."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.5)


def test_a_step_within_a_step_is_one_step() -> None:
    """torch calls hooks at both levels once the parent class has been made by itself."""
    weight = nn.Parameter(torch.tensor([8.0]))
    torch.optim.SGD([weight], lr=1.0)
    optimizer = Child([weight], lr=1.0)
    Anytime(0.5).attach(optimizer)
    for _ in range(2):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
    # x, w: 8, 8 -> 8 + (3 - 8) = 3, 5.5 -> 3 + (1.75 - 5.5) = -0.75, 2.375
    assert optimizer.state[weight]["anytime_step"] == 2
    assert (weight.item(), optimizer.state[weight]["anytime_iterate"].item()) == (2.375, -0.75)


def test_a_step_that_raised_is_over() -> None:
    weight = nn.Parameter(torch.tensor([8.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Anytime(0.5).attach(optimizer)

    def fails() -> None:
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            optimizer.step(fails)  # type: ignore[arg-type]
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    assert (weight.item(), optimizer.state[weight]["anytime_step"]) == (7.0, 1)
