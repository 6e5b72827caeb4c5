"""Everything that a run remembers, in one file that loads with ``weights_only=True``: by kind, whatever its stages are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_byz.exchange import Exchange, Placement
from lightning_byz.flat import Layout
from lightning_byz.memory import NOWHERE, Memory, Sliced, Vectors
from lightning_byz.rounds.aggregation import Aggregation
from lightning_byz.rounds.buffers import WorkerBuffers

KEY = "lightning_byz"
FORMAT = 2
WAITING = "waiting buffers"


class MemoryFile:
    """Collects the memories of all ranks on rank 0, and hands each rank its own.

    Args:
        exchange: Moves them between ranks.
        placement: Which workers live here.
        device: Where memories live while training.

    """

    def __init__(self, exchange: Exchange, placement: Placement, *, device: torch.device) -> None:
        self._exchange = exchange
        self._placement = placement
        self._device = device

    def collect(self, aggregations: Mapping[int, Aggregation], buffers: WorkerBuffers, *, seed: int) -> dict[str, Any]:
        """Return what the file must hold, whole on rank 0. Every rank must call it."""
        buffers.agree(self._exchange)
        local = self._placement.local
        own = {worker: {"buffers": buffers.state(worker)} for worker in local}
        own = {worker: states | self._waiting(buffers, worker) for worker, states in own.items()}
        more = {k: f"buffers {k}" for k in range(1, self._placement.batches)}
        for worker, states in own.items():
            states.update((name, buffers.state(worker + k * self._placement.workers)) for k, name in more.items())
        collected = self._workers(own, dict.fromkeys(("buffers", WAITING, *more.values()), own[local[0]]["buffers"]))
        seats = {
            worker + k * self._placement.workers: values[name]
            for k, name in more.items()
            for worker, values in collected.items()
        }
        return {
            "version": FORMAT,
            "seed": int(seed),
            "workers": self._placement.workers,
            "optimizers": {index: self._optimizer(aggregations[index]) for index in sorted(aggregations)},
            "buffers": {worker: values["buffers"] for worker, values in collected.items()} | seats,
            WAITING: {worker: values[WAITING] for worker, values in collected.items() if WAITING in values},
        }

    def _waiting(self, buffers: WorkerBuffers, worker: int) -> dict[str, Any]:
        """The buffers that a worker's waiting message would leave."""
        return {WAITING: buffers.state(worker, waiting=True)} if buffers.waits(worker) else {}

    def restore(
        self, saved: Mapping[str, Any], aggregations: Mapping[int, Aggregation], buffers: WorkerBuffers
    ) -> None:
        """Take over the memories and buffers of this rank's workers."""
        for index, entry in saved["optimizers"].items():
            aggregations[index].round.refuse_foreign(entry["step"], entry["counts"])
            self._refuse_other_stages(entry, aggregations[index])
            layout = Layout(tuple(entry["names"]), tuple(map(tuple, entry["shapes"])), _dtype(entry["dtype"]))
            counts, local = entry["counts"], self._placement.local
            needed = {counts["point"][worker] for worker in local} if "point" in counts else set()
            memory = Memory(
                entry["step"],
                entry["faults"],
                {worker: self._here(entry["memories"][worker]) for worker in local if worker in entry["memories"]},
                {stage: Sliced(values) for stage, values in entry["rules"].items()},
                counts,
                {step: point.to(self._device) for step, point in entry["points"].items() if step in needed},
            )
            aggregations[index].adopt(memory, layout)
        restore_buffers(saved, buffers)

    def _refuse_other_stages(self, entry: Mapping[str, Any], aggregation: Aggregation) -> None:
        """Refuse what workers remember of another estimator."""
        declared = aggregation.round.remembered(torch.empty(1))
        for stages in entry["memories"].values():
            for stage, values in stages.items():
                if set(values) != set(declared.get(stage, {})):
                    raise ValueError(
                        f"The checkpoint holds {sorted(values)} of each worker's {stage}, and this run's {stage} remembers"
                        f" {sorted(declared.get(stage, {}))}: resume with the same {stage}, or start a new run from the weights alone."
                    )

    def _here(self, stages: Mapping[str, Vectors]) -> dict[str, Vectors]:
        """Put what a worker remembers where it trains."""
        return {
            stage: {
                name: value.to(self._device) if isinstance(value, Tensor) else value for name, value in values.items()
            }
            for stage, values in stages.items()
        }

    def _optimizer(self, aggregation: Aggregation) -> dict[str, Any]:
        memory, layout = aggregation.round.saved(aggregation.memory), aggregation.layout
        like = torch.empty(layout.total, dtype=layout.dtype, device=self._device)
        template = aggregation.round.remembered(like)
        rules = {
            stage: {
                name: self._rules(values, stage, aggregation) for name, values in memory.rules[stage].values.items()
            }
            for stage in sorted(memory.rules)
        }
        return {
            "step": memory.step,
            "faults": memory.faults,
            "names": list(layout.names),
            "shapes": [list(shape) for shape in layout.shapes],
            "dtype": str(layout.dtype).removeprefix("torch."),
            "memories": self._workers(memory.workers, template),
            "counts": {kind: list(counts) for kind, counts in memory.counts.items()},
            "points": self._points(memory, like),
            "rules": rules if self._placement.rank == 0 else {},
        }

    def _workers(
        self, own: Mapping[int, Mapping[str, Vectors]], template: Mapping[str, Vectors]
    ) -> dict[int, dict[str, dict[str, Tensor | float]]]:
        """Bring what workers remember to rank 0; a stage that a worker has nothing of is left out."""
        stages = list(template)
        flags = [[stage in own.get(worker, {}) for stage in stages] for worker in range(self._placement.workers)]
        known = self._exchange.all_reduce(torch.tensor(flags, dtype=torch.int64, device=self._device)).tolist()
        collected: dict[int, dict[str, dict[str, Tensor | float]]] = {}
        for worker, here in enumerate(known):
            for stage in (stage for stage, flag in zip(stages, here, strict=True) if flag):
                values = own.get(worker, {}).get(stage, {})
                rows = {name: self._value(values.get(name), worker, like) for name, like in template[stage].items()}
                if self._placement.rank == 0:
                    collected.setdefault(worker, {})[stage] = {n: row for n, row in rows.items() if row is not None}
        return collected

    def _value(self, value: Tensor | float | None, worker: int, like: Tensor | float) -> Tensor | float | None:
        """Bring a vector or a number of one worker to rank 0."""
        host = self._placement.host(worker)
        if isinstance(like, Tensor):
            assert value is None or isinstance(value, Tensor)
            return self._exchange.gather_to_first(value, host=host, like=like)
        exact: dict[str, Any] = {"dtype": torch.float64 if isinstance(like, float) else None, "device": self._device}
        number = None if value is None else torch.tensor(value, **exact)
        arrived = self._exchange.gather_to_first(number, host=host, like=torch.tensor(like, **exact))
        return None if arrived is None else arrived.item()

    def _rules(self, values: Tensor, stage: str, aggregation: Aggregation) -> Tensor:
        """Bring a vector, or a table row by row, of the rules' side to rank 0; others keep nothing of it."""
        first = self._placement.rank == 0
        rows = [values] if values.ndim == 1 else list(values)
        wholes = [whole.cpu() if first else whole[:0] for whole in (aggregation.whole(row, stage) for row in rows)]
        return wholes[0] if values.ndim == 1 else torch.stack(wholes)

    def _points(self, memory: Memory, like: Tensor) -> dict[int, Tensor]:
        """Bring each point that some worker refers to to rank 0, from the rank of the lowest such worker."""
        points, steps = {}, list(memory.counts.get("point", ()))
        for step in sorted(set(steps) - {NOWHERE}):
            host = self._placement.host(steps.index(step))
            arrived = self._exchange.gather_to_first(memory.points.get(step), host=host, like=like)
            if arrived is not None:
                points[step] = arrived
        return points


def restore_buffers(saved: Mapping[str, Any], buffers: WorkerBuffers) -> None:
    """Take over the buffers of this rank's workers."""
    buffers.restore(saved["buffers"], saved.get(WAITING, {}))


def refuse_other_run(saved: Mapping[str, Any], workers: int) -> None:
    """Refuse memories of another format, or of another number of workers."""
    if saved["version"] != FORMAT:
        raise ValueError(
            f"The checkpoint holds memories of format {saved['version']}; this version reads format {FORMAT}. Finish that"
            " run with the version that saved it, or start a new one from the weights alone."
        )
    if saved["workers"] != workers:
        raise ValueError(
            f"The checkpoint holds the memories of {saved['workers']} workers and this run has {workers}: resume with"
            f" workers={saved['workers']} (on any number of ranks), or start a new run from the weights alone."
        )
    if len(saved["buffers"]) < workers:
        raise ValueError(
            "The checkpoint holds what another rank than 0 has collected, which is not whole: call state_dict() on every rank, and save rank 0's."
        )


def _dtype(name: str) -> torch.dtype:
    return {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }[name]
