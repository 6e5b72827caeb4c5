"""The Lightning strategy: an unchanged LightningModule trains through robust aggregation."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.constants import default_pg_timeout

from lightning_byz.aggregators import Aggregator
from lightning_byz.arrivals import Arrivals, Synchronous
from lightning_byz.attacks import Attack
from lightning_byz.codes import Code
from lightning_byz.compressors import Compressor, Identity
from lightning_byz.data import IID, Partition
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import AllToAll, Exchange, Local
from lightning_byz.links import Direct, Downlink, Link
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import Streams
from lightning_byz.rounds import Defence, WorkerBuffers, start_up
from lightning_byz.rounds.arguments import BUFFER_RULES, check_arrivals, check_buffers
from lightning_byz.rounds.checkpoint import refuse_other_run
from lightning_byz.rounds.coding import check_code, rules_under
from lightning_byz.rounds.ways import check_parameters, checked_ways
from lightning_byz.rounds.weights import checked_weights
from lightning_byz.strategies.arriving_loaders import Pace
from lightning_byz.strategies.inside_lightning import synchronizes_layers
from lightning_byz.strategies.planned import PlannedStrategy
from lightning_byz.strategies.refusals import (
    check_arguments,
    check_optimizers,
    check_rules,
    check_run,
    refused_comm_hook,
)
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.sites import check_data, check_sites
from lightning_byz.strategies.splitting import check_splitting
from lightning_byz.strategies.training_data import TrainingData


class RobustStrategy(PlannedStrategy):
    r"""Train an unchanged LightningModule through robust aggregation of the workers' gradients.

    Each logical worker's gradient becomes a message; the messages of one step meet the rules; the user's optimizer gets the aggregate where DDP would
    have given it the mean. Hooks, clipping, precision, schedulers and callbacks see it exactly as they see DDP's. With one worker per rank
    Lightning's own path is untouched; with more, each rank runs ``training_step`` for its workers in turn.

    Trusted: the launcher, the code, rank 0, the transport, and every rank as aggregator of its slice. Not trusted: the values that up to ``f``
    workers send.

    Args:
        f: How many workers may be Byzantine, whoever they are (may be fractional); ``"max"`` for the largest whole number that the rules tolerate.
            With unequal weights that is the weight of the ``f`` heaviest workers who take part in a step. ``None`` for a code's ``s``.
        aggregator: The robust rule; ``None`` under a code, whose rule is the mean.
        preaggregators: Rules applied before it, in order.
        estimator: What a worker sends instead of its raw gradient.
        anytime: Keeps the module at a running average of the iterates of its optimizers, each of them; ``None`` for the iterates themselves.
        workers: Number of logical workers, at least one per rank; ``None`` for one per rank.
        data: ``"shared"`` where all ranks' loaders have the same data, which are dealt out; ``"local"`` where each rank is a site with loaders of its
            own data, which stay there. An epoch then has all samples over those of one step, as many steps at each site, and small ones start over.
        partition: Which samples belong to which worker. With one worker per rank, ``IID()`` leaves samplers to Lightning, or to the user.
        split_batches: Whether several workers on a rank share the batches of the user's loader, whatever it is, in consecutive parts, as equal as
            possible. Lightning then gives ranks their loaders as under DDP, so that results depend on the number of ranks.
        attackers: Ids of the workers that attack in this experiment; may exceed ``f``, with a warning.
        attack: What they do. Without attackers it is not used, with a warning; attackers without an attack are refused.
        exchange: How rows reach the rules; ``None`` for ``Local()`` on one rank and ``AllToAll()`` on several.
        arrivals: Which workers deliver at each step. Other than ``Synchronous()``, due workers deliver what they computed at parameters fetched
            earlier, and rules see the last message of each; an epoch has as many deliveries as all shards have batches.
        link: What a worker compresses of its messages, and how the rules rebuild them.
        compressor: What makes bytes of a message, fewer of them; attackers can send nothing that its format cannot say.
        downlink: How the aggregate comes back: a compressor, or a ``Downlink`` of one with a link; ``None`` for as it is.
        code: Has several workers compute the same parts, so that liars are named and the mean of all parts is exact, and estimators see that mean;
            ``None`` for each worker's own gradient and an aggregator.
        weights: How much each worker counts: one number >= 0 per worker, or ``"samples"`` for the size of each worker's shard, which is only as
            trustworthy as whoever says it; under arrivals ``"counts"`` for the messages delivered (Dahan and Levy, 2024), or ``"samples*counts"``;
            ``None`` for all alike. Rules that take equal weights only are refused. With ``byzantine_share`` stated, that part of the weight may be
            Byzantine (or what attackers have of it, if that is more), and ``f`` counts heads in ``attackers`` only.
        age_decay: Times which a weight goes with each step of its message's age, under arrivals; ``None`` for none.
        max_share: The largest part of the total weight that one worker may have; larger weights are lowered to one value at which none has more.
        buffers: What evaluation and checkpoints use of the workers' buffers: their coordinate-wise median, or their mean.
        seed: Keys every draw. A checkpoint's seed goes before it; ``None`` for ``PL_GLOBAL_SEED``, else 0.
        digest_every: Steps between two comparisons of all ranks' parameters, bit by bit: a rank that drifted stops the run by name. ``None``: never.
        timeout: How long a collective waits for other ranks, once all have taken a step.
        accelerator: As for ``DDPStrategy``.
        parallel_devices: As for ``DDPStrategy``.
        cluster_environment: As for ``DDPStrategy``.
        checkpoint_io: As for ``DDPStrategy``.
        precision_plugin: As for ``DDPStrategy``.
        process_group_backend: As for ``DDPStrategy``.
        start_method: As for ``DDPStrategy``.
        find_unused_parameters: Taken from a configuration of ``DDPStrategy``, and changes nothing: parameters may be unused at any step.
        static_graph: Likewise.
        gradient_as_bucket_view: Likewise; gradients are views of the aggregate where all parameters have one dtype.
        ddp_comm_hook: Refused: a hook would average gradients before any rule sees them.

    Raises:
        ValueError: For arguments that no run can use; when the run starts, for a module, loader or checkpoint that does not fit.
        ToleranceError: When the run starts, if a rule cannot tolerate ``f``.
        TooManyFaults: After three steps in a row with more broken weight than ``f``.

    """

    def __init__(
        self,
        *,
        f: float | Literal["max"] | None = None,
        aggregator: Aggregator | None = None,
        preaggregators: Sequence[PreAggregator] = (),
        estimator: Estimator = Gradient(),  # noqa: B008 - frozen
        anytime: Anytime | None = None,
        workers: int | None = None,
        data: Literal["shared", "local"] = "shared",
        partition: Partition = IID(),  # noqa: B008 - frozen
        split_batches: bool = False,
        attackers: Sequence[int] = (),
        attack: Attack | None = None,
        exchange: Exchange | None = None,
        arrivals: Arrivals = Synchronous(),  # noqa: B008 - frozen
        link: Link = Direct(),  # noqa: B008 - frozen
        compressor: Compressor = Identity(),  # noqa: B008 - frozen
        downlink: Compressor | Downlink | None = None,
        code: Code | None = None,
        weights: Sequence[float | int] | Literal["samples", "counts", "samples*counts"] | None = None,
        age_decay: float | None = None,
        max_share: float | None = None,
        buffers: Literal["median", "mean"] = "median",
        seed: int | None = None,
        digest_every: int | None = 50,
        timeout: timedelta = default_pg_timeout,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = False,
        ddp_comm_hook: Callable[..., Any] | None = None,
    ) -> None:
        tolerated, rule = rules_under(code, f, aggregator)
        check_arguments(tolerated, workers, attackers, attack, seed=seed)
        stages = {"aggregator": rule, "estimator": estimator, "partition": partition}
        check_rules(stages, attack=attack, exchange=exchange, preaggregators=preaggregators)
        weights = checked_weights(weights, max_share, workers)
        check_data(data, partition)
        check_splitting(split_batches, partition, weights)
        check_arrivals(arrivals, weights, age_decay, local=data == "local", split=split_batches)
        downlink = checked_ways(link, compressor, downlink)
        asked = {"preaggregators": preaggregators, "arrivals": arrivals, "link": link, "compressor": compressor}
        asked |= {"downlink": downlink, "weights": weights, "max_share": max_share}
        check_code(code, estimator, **asked, local=data == "local", split=split_batches)
        check_buffers(buffers)
        super().__init__(
            seed=seed,
            digest_every=digest_every,
            anytime=anytime,
            ddp_comm_hook=refused_comm_hook(ddp_comm_hook),
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
            find_unused_parameters=find_unused_parameters,
            static_graph=static_graph,
            gradient_as_bucket_view=gradient_as_bucket_view,
        )
        self.f = tolerated
        self.aggregator: Aggregator = rule
        self.preaggregators = tuple(preaggregators)
        self.estimator = estimator
        self.workers = workers
        self.data = data
        self.partition = partition
        self.split_batches = split_batches
        self.attackers = tuple(attackers)
        self.attack = attack
        self.exchange = exchange
        self.arrivals = arrivals
        self.age_decay = age_decay
        self.link = link
        self.compressor = compressor
        self.downlink = downlink
        self.code = code
        self.weights = weights if code is None else None
        self.max_share = max_share
        self.buffers = buffers
        self._defence: Defence | None = None

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare a run; refuse what cannot be right."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        module = self.lightning_module
        assert module is not None
        exchange = self.exchange or (Local() if self.world_size == 1 else AllToAll())
        plan, placement = self.plan, exchange.place(self.workers or self.world_size)
        placement = plan.placed(placement)
        if self._saved is not None:
            refuse_other_run(self._saved, placement.workers)
        check_sites(self.data, placement)
        check_run(plan, trainer, module, placement, synchronized=synchronizes_layers(self))
        start_up.refuse_different_modules(module, exchange, self.root_device)
        start_up.agree_on_kernels(exchange, self.root_device)
        streams, self._defence = Streams(self.root_device), None
        if not plan.by_size:
            self._defence = self._fitting(plan.constant, exchange, placement)
        deals = {"partition": self.partition, "local": self.data == "local", "split": self.split_batches}
        deals["pace"] = None if plan.in_lock_step else Pace(lambda: self._run, plan, placement, self.seed)
        deals["parts"] = parts = plan.parts(placement.workers)
        self._data = TrainingData(trainer, module, placement, exchange, streams=streams, seed=self.seed, **deals)
        self._data.install(self._weigh if self._defence is None else None)
        super().setup(trainer)
        check_optimizers(module, self.optimizers, plan)
        check_parameters(plan, self.optimizers, exchange, placement)
        self.workers = placement.workers
        buffers = WorkerBuffers(module, placement.seats, rule=BUFFER_RULES[self.buffers])
        known = {"buffers": buffers, "streams": streams, "seed": self.seed, "parts": parts}
        self._run = Run(module, exchange, placement, **known)
        if self._defence is not None:
            self._begin(self._defence)
