"""Everything that lives for one fit."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.optim import Optimizer

from lightning_byz.exchange import Exchange, Placement
from lightning_byz.pipeline import Pipeline, Report
from lightning_byz.random import Streams
from lightning_byz.strategies import checkpoint as memory_file
from lightning_byz.strategies.aggregation import Aggregation
from lightning_byz.strategies.buffers import WorkerBuffers
from lightning_byz.strategies.worker_loop import WorkerLoop


class Run:
    """One fit's workers: their steps, their memories, and the aggregation of their gradients.

    Args:
        module: The user's module, with its parameters where they train.
        pipeline: The chain of rules.
        exchange: How rows reach the rules.
        placement: Which workers live here.
        buffers: The workers' buffers.
        streams: The global random streams.

    """

    def __init__(
        self,
        module: pl.LightningModule,
        pipeline: Pipeline,
        exchange: Exchange,
        placement: Placement,
        *,
        buffers: WorkerBuffers,
        streams: Streams,
    ) -> None:
        self.module = module
        self.placement = placement
        self.buffers = buffers
        self.aggregation = Aggregation(pipeline, exchange, placement, device=module.device)
        self.loop = WorkerLoop(
            module,
            placement,
            buffers=buffers,
            streams=streams,
            seed=pipeline.seed,
            attackers=pipeline.attackers,
            attack=pipeline.attack,
        )

    def aggregate(self, index: int, optimizer: Optimizer, precision: Precision, *, diagnose: bool) -> Report:
        """Replace the local gradients of an optimizer's parameters by the aggregate."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad
        ]
        named = [
            (names.get(id(parameter), f"parameter {place}"), parameter) for place, parameter in enumerate(parameters)
        ]
        scaler = getattr(precision, "scaler", None)
        scale = None if scaler is None else _scale(scaler, self.aggregation.device)
        report = self.aggregation.step(index, named, self.loop.gradients(parameters), scale=scale, diagnose=diagnose)
        self.loop.forget()
        usable = report.accepted & report.present
        self.buffers.settle({worker: report.taken and bool(usable[worker]) for worker in self.placement.local})
        return report

    def consensus(self) -> dict[str, Tensor]:
        """Return what all workers' buffers have in common. Every rank must call it."""
        return self.buffers.consensus(self.aggregation.exchange, self.placement)

    def memories(self) -> dict[str, Any]:
        """Return what a checkpoint must hold. Every rank must call it; rank 0's is whole."""
        return memory_file.collect(self.aggregation, self.buffers)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over the memories of a checkpoint."""
        memory_file.restore(saved, self.aggregation, self.buffers)


def _scale(scaler: torch.amp.GradScaler, device: torch.device) -> float:
    """Return the present scale; a scaler that has scaled nothing yet, since this rank's workers sent nothing, is started."""
    scaler.scale(torch.zeros(1, device=device))
    return scaler.get_scale()
