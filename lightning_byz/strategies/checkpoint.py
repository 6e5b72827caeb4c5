"""Every memory of a run in one file that loads with ``weights_only=True``."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_byz.flat import Layout
from lightning_byz.pipeline import Carried, PipelineState
from lightning_byz.strategies.aggregation import Aggregation
from lightning_byz.strategies.buffers import WorkerBuffers

KEY = "lightning_byz"
VERSION = 1


def collect(aggregation: Aggregation, buffers: WorkerBuffers) -> dict[str, Any]:
    """Bring all workers' memories and buffers to rank 0; other ranks return a dict without them. Every rank must call it."""
    placement, exchange = aggregation.placement, aggregation.exchange
    buffers.agree(exchange)
    collected: dict[int, dict[str, Tensor]] = {}
    template = buffers.state(placement.local[0])
    for worker in range(placement.workers):
        own = buffers.state(worker) if worker in placement.local else {}
        rows = {
            name: exchange.collect(own.get(name), worker=worker, placement=placement, like=like)
            for name, like in template.items()
        }
        collected[worker] = {name: row for name, row in rows.items() if row is not None}
    return {
        "version": VERSION,
        "seed": int(aggregation.pipeline.seed),
        "workers": placement.workers,
        "optimizers": {index: _optimizer(aggregation, index) for index in sorted(aggregation.states)},
        "buffers": collected,
    }


def restore(saved: Mapping[str, Any], aggregation: Aggregation, buffers: WorkerBuffers) -> None:
    """Take over memories and buffers of this rank's workers; in files of runs that carried nothing, nothing is there to carry over."""
    for index, entry in saved["optimizers"].items():
        dtype = _dtype(entry["dtype"])
        layout = Layout(tuple(entry["names"]), tuple(tuple(shape) for shape in entry["shapes"]), dtype)
        memories = {
            worker: {key: value.to(aggregation.device) for key, value in entry["memories"][worker].items()}
            for worker in aggregation.placement.local
        }
        carried = Carried(entry.get("reference"), entry.get("past", {})).map(
            partial(torch.Tensor.to, device=aggregation.device, dtype=dtype)
        )
        aggregation.adopt(index, PipelineState(entry["step"], entry["faults"], memories, carried), layout)
    buffers.restore(saved["buffers"])


def refuse_other_run(saved: Mapping[str, Any], workers: int) -> None:
    """Refuse memories of another number of workers."""
    if saved["version"] != VERSION:
        raise ValueError(
            f"The checkpoint holds memories of format {saved['version']}; this version reads format {VERSION}."
        )
    if saved["workers"] != workers:
        raise ValueError(
            f"The checkpoint holds the memories of {saved['workers']} workers and this run has {workers}: resume with workers={saved['workers']}"
            " (on any number of ranks), or start a new run from the weights alone."
        )


def _optimizer(aggregation: Aggregation, index: int) -> dict[str, Any]:
    state, layout, placement = aggregation.states[index], aggregation.layouts[index], aggregation.placement
    blank = aggregation.pipeline.estimator.init(layout.total, dtype=layout.dtype, device=aggregation.device)
    memories: dict[int, dict[str, Tensor]] = {}
    for worker in range(placement.workers):
        memory = state.memories.get(worker, blank) if worker in placement.local else {}
        rows = {
            key: aggregation.exchange.collect(memory.get(key), worker=worker, placement=placement, like=like)
            for key, like in blank.items()
        }
        memories[worker] = {key: row for key, row in rows.items() if row is not None}
    carried = aggregation.whole(index).map(lambda vector: vector.cpu())
    return {
        "step": state.step,
        "faults": state.faults,
        "names": list(layout.names),
        "shapes": [list(shape) for shape in layout.shapes],
        "dtype": str(layout.dtype).removeprefix("torch."),
        "memories": memories,
        **(
            {}
            if placement.rank
            else {"reference": carried.reference, "past": {worker: list(rows) for worker, rows in carried.past.items()}}
        ),
    }


def _dtype(name: str) -> torch.dtype:
    return {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }[name]
