"""Workers that do not wait: gradients per second, time to an accuracy, the server's work per arrival, and how stale messages are.

python benchmarks/async.py rates       # against RobustStrategy on the same 3 workers, one of them 10 times slower by sleep; also time to accuracy
python benchmarks/async.py server      # one arrival against rule, optimizer, a copy in and a copy out
python benchmarks/async.py staleness   # against RandomArrivals(law="uniform")
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from lightning_byz.aggregators import CTMA, CoordinateMedian, Mean
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.exchange import Placement
from lightning_byz.rounds import Aggregation, Defence, Sent
from lightning_byz.serving import OneByOne
from lightning_byz.serving.messages import raw, vector_of
from lightning_byz.serving.serving import AsTheyCome, Desk, ServingPlan
from lightning_byz.stack import Stack
from lightning_byz.strategies import AsyncRobustStrategy, RobustStrategy

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
SLOWER = 10
SKIPPED = 30
"""Updates or steps before the clock starts."""


class Sleepy(DigitsClassifier):
    """Sleeps in its step as long as its rank's entry says."""

    sleeps: Sequence[float] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sleep, and return the loss."""
        if self.sleeps:
            time.sleep(self.sleeps[self.trainer.global_rank])
        return super().training_step(batch, batch_idx)


class Clock(pl.Callback):
    """Notes when which step was reached, and when which accuracy."""

    def __init__(self, wanted: float) -> None:
        self.times: list[float] = []
        self.reached: float | None = None
        self._wanted = wanted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.began = time.perf_counter()
        self._images, self._labels = trainer.datamodule.validation.tensors  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time, and every tenth step whether the accuracy is reached."""
        self.times.append(time.perf_counter())
        if self.reached is None and trainer.global_step % 10 == 0:
            with torch.no_grad():
                right = pl_module(self._images).argmax(1) == self._labels
            if right.float().mean() >= self._wanted:
                self.reached = self.times[-1] - self.began
                trainer.should_stop = len(self.times) > SKIPPED + 100


def one(kind: str, unit: float, steps: int, seed: int, accuracy: float) -> None:
    """Run one fit, and print its gradients per second and seconds to the accuracy."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(seed, verbose=False)
    sleeps, clock, module = [unit, unit, SLOWER * unit], Clock(accuracy), Sleepy(learning_rate=0.1)
    if kind == "async":
        delays = {"delays": sleeps, "start_method": "fork", "deadline": 20.0}
        strategy: Any = AsyncRobustStrategy(workers=3, f=0, aggregator=Mean(), seed=seed, **delays)
    else:
        module.sleeps = sleeps
        strategy = RobustStrategy(f=0, aggregator=Mean(), seed=seed)
    about = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "callbacks": [clock], **QUIET}
    devices = 1 if kind == "async" else 3
    trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, **about)
    trainer.fit(module, datamodule=DigitsData(batch_size=16))
    if trainer.global_rank == 0:
        seconds = clock.times[-1] - clock.times[SKIPPED]
        gradients = (len(clock.times) - 1 - SKIPPED) * (1 if kind == "async" else 3)
        print(json.dumps({"rate": gradients / seconds, "reached": clock.reached}), flush=True)


def rates(unit: float = 0.01, pairs: int = 3, accuracy: float = 0.95) -> None:
    """Print gradients used per second and seconds to an accuracy, of both, in turn.

    Args:
        unit: Seconds that a fast worker sleeps before each gradient.
        pairs: Runs of each.
        accuracy: The accuracy on the validation images.
    """
    found: dict[str, list[Mapping[str, float]]] = {"async": [], "lock-step": []}
    for seed in range(pairs):
        for kind, steps in (("async", 4000), ("lock-step", 1500)):
            given = [kind, *map(str, (unit, steps, seed, accuracy))]
            command = [sys.executable, __file__, "one", *given]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300
            )
            found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            print(kind, found[kind][-1], flush=True)
    for kind, runs in found.items():
        told = [f"{run['rate']:.0f}/s, {run['reached'] or float('nan'):.1f} s" for run in runs]
        print(f"{kind:>10}: gradients per second, seconds to {accuracy:g}: {'; '.join(told)}")
    pairs_of = list(zip(found["async"], found["lock-step"], strict=True))
    print("gradients per second, ratio:", [round(first["rate"] / second["rate"], 2) for first, second in pairs_of])
    print("seconds, ratio:", [round(first["reached"] / second["reached"], 2) for first, second in pairs_of])


def server(workers: int = 17, coordinates: int = 1_000_000, f: int = 6, arrivals: int = 60) -> None:
    """Print what the server does per arrival against rule, optimizer and two copies.

    Args:
        workers: Number of workers.
        coordinates: Number of parameters.
        f: Workers that may be Byzantine.
        arrivals: Arrivals that are timed.
    """
    rule, desk = CTMA(CoordinateMedian()), Desk()
    plan = ServingPlan(weights="counts", arrivals=AsTheyCome(), desk=desk)
    parameter = nn.Parameter(torch.zeros(coordinates))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    round = plan.round(Defence(workers, f, rule))
    aggregation = Aggregation(round, OneByOne(), Placement(workers, 1, 0), device=torch.device("cpu"))
    aggregation.fit([("weight", parameter)])
    messages = [bytes(raw(torch.randn(coordinates)).tobytes()) for _ in range(workers)]
    rows, into = torch.randn(workers, coordinates), torch.empty(coordinates)
    ours, theirs = [], []
    for arrival in range(workers + arrivals):
        worker = arrival % workers
        began = time.perf_counter()
        row = vector_of(messages[worker], torch.float32)
        desk.worker, desk.version, desk.turn = worker, max(desk.updates - workers, 0), arrival
        report = aggregation.step({worker: Sent([row], [True])})
        if report.taken:
            optimizer.step()
            aggregation.stepped()
            desk.updates += 1
        out = torch.empty(coordinates)
        aggregation.layout.flatten([parameter.detach()], out=aggregation.layout.views(out))
        ended = time.perf_counter()
        if not report.taken or arrival < 2 * workers:
            continue
        ours.append(ended - began)
        began = time.perf_counter()
        into.copy_(row)
        parameter.grad = rule(Stack(rows, report.census.weights, report.f))
        optimizer.step()
        out = parameter.detach().clone()
        theirs.append(time.perf_counter() - began)
    ratios = sorted(first / second for first, second in zip(ours, theirs, strict=True))
    print(
        f"arrival {1e3 * statistics.median(ours):.1f} ms, rule, optimizer and copies {1e3 * statistics.median(theirs):.1f} ms"
    )
    print(
        f"ratio: median {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} arrivals"
    )


class Ages(pl.Callback):
    """Notes how old each message is when it arrives."""

    def __init__(self) -> None:
        self.ages: list[int] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the age of the message of this update."""
        census = trainer.strategy.report.census  # type: ignore[attr-defined]
        self.ages += [age for age, word in zip(census.ages, census.arrival, strict=True) if word.value == "arrived"]


def staleness(workers: int = 6, seconds: float = 0.1, updates: int = 1500, seeds: int = 3) -> None:
    """Print mean and variance of staleness, and the accuracy, of exponential sleeps of equal mean and of uniform random arrivals.

    Args:
        workers: Number of workers.
        seconds: Mean sleep.
        updates: Updates per run.
        seeds: Runs of each.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("                 mean      variance  accuracy")
    for kind in ("async", "lock-step"):
        means, spreads, accuracies = [], [], []
        for seed in range(seeds):
            pl.seed_everything(seed, verbose=False)
            ages, module, data = Ages(), DigitsClassifier(learning_rate=0.05), DigitsData(batch_size=16)
            common: dict[str, Any] = {"workers": workers, "f": 0, "aggregator": Mean(), "seed": seed}
            pause = {"delays": [seconds] * workers, "delay_law": "exponential", "start_method": "fork"}
            if kind == "async":
                strategy: Any = AsyncRobustStrategy(**common, **pause, deadline=30.0)
            else:
                strategy = RobustStrategy(**common, arrivals=RandomArrivals("uniform"), weights="counts")
            about = {"max_steps": updates, "max_epochs": -1, "limit_val_batches": 0, "callbacks": [ages], **QUIET}
            trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, **about)
            trainer.fit(module, datamodule=data)
            settled = torch.tensor(ages.ages[100:], dtype=torch.float64)
            blocks = settled[: len(settled) // 20 * 20].view(20, -1)
            means.append(blocks.mean(1))
            spreads.append(((blocks - settled.mean()) ** 2).mean(1))
            images, labels = data.validation.tensors
            accuracies.append(float((module(images).argmax(1) == labels).float().mean()))
        told = [_with_error(torch.cat(one)) for one in (means, spreads)]
        print(f"{kind:>10}: {'  '.join(told)}  {_with_error(torch.tensor(accuracies))}")


class Trouble(pl.Callback):
    """Kills or stops a worker now and then, lets the stopped ones go on later, and notes what the serving process holds.

    Args:
        seconds: Between two deeds.
        minutes: After which the run ends.
    """

    def __init__(self, seconds: float, minutes: float) -> None:
        self.held: list[tuple[int, int, int, float]] = []
        self.deeds = {"kill": 0, "stop": 0}
        self._seconds, self._end, self._next = seconds, time.monotonic() + 60 * minutes, time.monotonic() + seconds
        self._draws, self._stopped = random.Random(0), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do it if it is time."""
        now = time.monotonic()
        if now > self._end:
            trainer.should_stop = True
        if now < self._next:
            return
        self._next = now + self._seconds
        pids = trainer.strategy.served.engine.pids  # type: ignore[attr-defined]
        if self._stopped:
            with suppress(ProcessLookupError):
                os.kill(self._stopped, signal.SIGCONT)
        self.held.append(_held())
        deed, pid = self._draws.choice(list(self.deeds)), self._draws.choice(list(pids.values()))
        self.deeds[deed] += 1
        self._stopped = pid if deed == "stop" else 0
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if deed == "kill" else signal.SIGSTOP)


def soak(minutes: float = 10.0, seconds: float = 10.0) -> None:
    """Train for some minutes while workers are killed and stopped at random; print what the serving process holds.

    Args:
        minutes: Length of the run.
        seconds: Between two deeds.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    trouble = Trouble(seconds, minutes)
    pause = {"delays": [0.02] * 6, "start_method": "fork", "deadline": 3.0, "restarts": 10_000}
    strategy = AsyncRobustStrategy(workers=6, f=1, aggregator=CTMA(CoordinateMedian()), **pause)
    about = {"max_epochs": -1, "limit_val_batches": 0, "callbacks": [trouble], **QUIET}
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, **about)
    module, data = DigitsClassifier(learning_rate=0.02), DigitsData(batch_size=16)
    trainer.fit(module, datamodule=data)
    images, labels = data.validation.tensors
    accuracy = float((module(images).argmax(1) == labels).float().mean())
    print(
        f"{trainer.global_step} updates, {trouble.deeds}, accuracy {accuracy:.3f}; processes, open files, threads, MiB every {seconds:g} s:"
    )
    for line in trouble.held:
        print(*line)


def _held() -> tuple[int, int, int, float]:
    """Return this process's children, open files, threads and resident memory."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(children), len(os.listdir("/proc/self/fd")), threading.active_count(), round(pages * 4096 / 2**20, 1)


def _with_error(blocks: Tensor) -> str:
    """Return a mean and its standard error from means of blocks."""
    return f"{blocks.mean():.3f} +- {blocks.std() / len(blocks) ** 0.5:.3f}"


if __name__ == "__main__":
    auto_cli([rates, server, staleness, soak, one], as_positional=True)
