"""The Lightning strategy of workers that do not wait: each goes at its own pace, and rules weigh it by what it delivers."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.compressors import Identity
from lightning_byz.data import IID, Partition
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import Placement
from lightning_byz.links import Direct
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import Streams
from lightning_byz.rounds import Attackers, WorkerBuffers
from lightning_byz.rounds.arguments import BUFFER_RULES, check_buffers
from lightning_byz.rounds.checkpoint import refuse_other_run
from lightning_byz.serving.one_row import OneByOne
from lightning_byz.serving.ray_engine import Ray
from lightning_byz.serving.serving import AsTheyCome, Desk, ServingPlan
from lightning_byz.strategies.async_checks import check_async_arguments, check_async_run, check_trained
from lightning_byz.strategies.refusals import check_arguments, check_optimizers, check_rules
from lightning_byz.strategies.served_data import ServedData
from lightning_byz.strategies.served_run import RunOfMany
from lightning_byz.strategies.serving import ServingStrategy


class AsyncRobustStrategy(ServingStrategy):
    r"""Train an unchanged LightningModule with workers that go at their own pace: a slow one slows nobody, a dead one stops nobody.

    The process that runs the Trainer serves: validation, checkpoints, loggers, schedulers and callbacks are as ever, with a world of one. Workers are
    processes that it starts. Each fetches the parameters, computes a gradient of a batch of its own shard, sends what its estimator makes of it, and
    fetches again. The rules see the last message of each worker, which weighs as much as the worker has delivered (Dahan and Levy, 2024). A step of
    the Trainer is an update; while the rules do not tolerate ``f``, messages are collected and no update is made.

    Runs are not repeatable: who delivers when is up to the machine.

    Args:
        workers: Number of workers, each a process.
        f: How many of them may be Byzantine, whoever they are: what the ``f`` heaviest have delivered.
        aggregator: The robust rule; one for unequal weights.
        preaggregators: Rules applied before it, in order.
        estimator: What a worker sends instead of its raw gradient.
        anytime: Keeps the module at a running average of the iterates of its optimizer; ``None`` for the iterates themselves.
        byzantine_share: The part of the deliveries that may be Byzantine, below one half; ``f`` then counts heads in the attackers only.
        every: Arrivals from one look of the rules at the messages to the next.
        deadline: Seconds of silence after which a worker is left out until it comes back, and in which workers end once the server is gone.
        restarts: How often a worker whose process has ended is started again, with an empty memory.
        delays: Seconds for which each worker sleeps before each gradient, to try out in an experiment; ``None`` for none.
        delay_law: ``"constant"``, or ``"exponential"`` for sleeps that are drawn with these means.
        age_decay: Times which a weight goes with each update since its message was computed; ``None`` for none.
        partition: Which samples belong to which worker. An epoch has as many arrivals as all shards have batches.
        attackers: Ids of the workers that attack in this experiment.
        attack: What they do.
        buffers: What evaluation and checkpoints use of the workers' buffers: their coordinate-wise median, or their mean.
        seed: Keys every draw that depends on a worker's turn alone.
        engine: What starts the workers: ``"processes"`` for children of this process, on this machine; ``"ray"``, or a :class:`Ray` that says where,
            for actors of Ray.
        start_method: How processes start, with ``engine="processes"``: ``"spawn"``, ``"forkserver"``, or ``"fork"`` for at once,
            on the CPU only.
        threads: torch's threads in each worker.
        accelerator: As for ``DDPStrategy``, as the next three.
        parallel_devices: Likewise.
        checkpoint_io: Likewise.
        precision_plugin: Likewise, without a gradient scaler.

    Raises:
        ValueError: For arguments that no run can use; when the run starts, for a module, loader or checkpoint that does not fit.
        ToleranceError: When the run starts, if a rule cannot tolerate ``f``, or takes equal weights only.
        RuntimeError: When the run starts, if a worker cannot take its first turn.
        TooManyFaults: If no worker is left, or more weight was broken than ``f`` three times in a row.

    """

    def __init__(
        self,
        *,
        workers: int,
        f: float | Literal["max"],
        aggregator: Aggregator,
        preaggregators: Sequence[PreAggregator] = (),
        estimator: Estimator = Gradient(),  # noqa: B008 - frozen
        anytime: Anytime | None = None,
        byzantine_share: float | None = None,
        every: int = 1,
        deadline: float = 30.0,
        restarts: int = 0,
        delays: Sequence[float] | None = None,
        delay_law: Literal["constant", "exponential"] = "constant",
        age_decay: float | None = None,
        partition: Partition = IID(),  # noqa: B008 - frozen
        attackers: Sequence[int] = (),
        attack: Attack | None = None,
        buffers: Literal["median", "mean"] = "median",
        seed: int | None = None,
        engine: Literal["processes", "ray"] | Ray = "processes",
        start_method: Literal["spawn", "fork", "forkserver"] = "spawn",
        threads: int = 1,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        check_arguments(f, workers, attackers, attack, seed=seed)
        stages = {"aggregator": aggregator, "estimator": estimator, "partition": partition}
        check_rules(stages, attack=attack, exchange=None, preaggregators=preaggregators)
        check_buffers(buffers)
        pace = {"every": every, "deadline": deadline, "restarts": restarts, "threads": threads}
        kinds = {"engine": engine, "start_method": start_method, "delay_law": delay_law}
        check_async_arguments(workers, byzantine_share, age_decay, delays, numbers=pace, words=kinds)
        super().__init__(
            seed=seed,
            digest_every=None,
            anytime=anytime,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self.f = f
        self.aggregator = aggregator
        self.preaggregators = tuple(preaggregators)
        self.estimator = estimator
        self.workers = workers
        self.byzantine_share = byzantine_share
        self.every = every
        self.deadline = float(deadline)
        self.restarts = restarts
        self.delays = None if delays is None else tuple(map(float, delays))
        self.delay_law = delay_law
        self.age_decay = age_decay
        self.partition = partition
        self.attackers = tuple(attackers)
        self.attack = attack
        self.buffers = buffers
        self.engine = engine
        self.start_method = start_method
        self.threads = threads
        self.arrivals = AsTheyCome(byzantine_share)
        self.link, self.compressor, self.downlink, self.code = Direct(), Identity(), None, None
        self.weights, self.max_share = "counts", None
        self._desk, self._defence = Desk(), None

    @property
    def plan(self) -> ServingPlan:
        """What steps are made of besides the rules."""
        attackers, rest = Attackers(self.attackers, self.attack), {"age_decay": self.age_decay, "desk": self._desk}
        return ServingPlan(self.estimator, attackers, self.arrivals, "counts", **rest)

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare a run; refuse what cannot be right."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        module, exchange = self.lightning_module, OneByOne()
        assert module is not None
        assert self.workers is not None
        self._desk, placement = Desk(), Placement(self.workers, 1, 0, in_turn=True)
        if self._saved is not None:
            refuse_other_run(self._saved, self.workers)
        check_async_run(self, trainer, module)
        streams = Streams(self.root_device)
        self._defence = self._fitting(None, exchange, placement)
        deals: dict[str, Any] = {"partition": self.partition, "local": False, "split": False}
        self._data = ServedData(trainer, module, placement, exchange, streams=streams, seed=self.seed, **deals)
        self._data.every = self.every
        self._data.install()
        super().setup(trainer)
        check_optimizers(module, self.optimizers, self.plan)
        check_trained(module, self.optimizers)
        buffers = WorkerBuffers(module, placement.local, rule=BUFFER_RULES[self.buffers])
        self._run = RunOfMany(module, exchange, placement, buffers=buffers, streams=streams, seed=self.seed)
        self._begin(self._defence)
        self.served = None
