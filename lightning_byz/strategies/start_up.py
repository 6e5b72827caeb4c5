"""Before the first step: whether the rules tolerate what they are asked to, and what a run says of itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_byz.errors import ToleranceError
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.kernels import block_size
from lightning_byz.pipeline import Pipeline
from lightning_byz.random import derive
from lightning_byz.stack import Slice, Stack
from lightning_byz.strategies.weights import heaviest_coalition, heavy_workers


def fitting_pipeline(f: float | str, make: Callable[[float], Pipeline], *, workers: int, sliced: bool) -> Pipeline:
    """Return the pipeline for ``f``, or for the largest whole number of workers that its rules tolerate.

    Raises:
        ToleranceError: If a rule cannot tolerate ``f``.
        ValueError: If ranks hold slices and a rule mixes coordinates past the Stack's methods.

    """
    if not isinstance(f, str):
        pipeline = make(float(f))
        pipeline.check()
    else:
        pipeline = _largest(make, workers)
    if sliced:
        refuse_mixing(pipeline)
    return pipeline


def refuse_mixing(pipeline: Pipeline) -> None:
    """Refuse a rule that computes across coordinates by itself: on a slice it would see a part and not know it."""
    if any(_mixes(pipeline, trial) for trial in range(8)):
        names = [type(rule).__name__ for rule in (*pipeline.preaggregators, pipeline.aggregator)]
        raise ValueError(
            f"{' -> '.join(names)} gives other values on a slice of the coordinates than on all of them, and on several ranks each rank sees a slice:"
            " compute across coordinates through stack.squared_distances(), stack.squared_distances_to(point) and stack.squared_norms()."
        )


def _mixes(pipeline: Pipeline, trial: int) -> bool:
    """Whether the rules see, on either half of some coordinates, other values there than on all of them, without asking for the rest."""
    asked, width = False, block_size(128)
    draws = torch.Generator().manual_seed(trial)
    rows = torch.randn(pipeline.workers, 2 * width, generator=draws)
    rows[:, width:] *= 10.0 * torch.rand(pipeline.workers, 1, generator=draws)
    reference = torch.randn(2 * width, generator=draws) if trial % 2 else None  # a first step, or a later one
    whole = pipeline.aggregate(pipeline.entering(Stack(rows), reference), step=0)[0]
    start = width * (trial // 2 % 2)

    def gather(partials: Tensor) -> Tensor:
        nonlocal asked
        asked = True
        halves = [partials, torch.zeros_like(partials)]
        return torch.cat(halves[::-1] if start else halves)

    own = slice(start, start + width)
    part = Stack(rows[:, own], slice=Slice(start, start + width, 2 * width, gather, lambda counts: counts))
    sliced = pipeline.aggregate(pipeline.entering(part, None if reference is None else reference[own]), step=0)[0]
    return not asked and not torch.allclose(sliced, whole[own], rtol=1e-4, atol=1e-5)


def refuse_different_modules(module: nn.Module, exchange: Exchange, device: torch.device) -> None:
    """Refuse ranks whose modules have other parameters or buffers than rank 0's. Every rank must call it."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    words = [f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}" for name, tensor in tensors]
    own = torch.tensor([derive(0, *words)], dtype=torch.int64, device=device)
    differs = (exchange.share(own) != own).to(torch.int64)
    ranks = int(exchange.add(differs))
    if ranks:
        raise ValueError(
            f"{ranks} ranks built a {type(module).__name__} whose parameters or buffers differ from rank 0's in name, shape, dtype or requires_grad"
            f" ({len(tensors)} of them on this rank): build the same module on every rank."
        )


def start_up_line(pipeline: Pipeline, exchange: Exchange, placement: Placement) -> str:
    """Return one line on exchange, trust, threads, weights, and the workers that could together exceed f."""
    line = (
        f"lightning_byz: {placement.workers} workers on {placement.ranks} rank{'s' * (placement.ranks > 1)}, f = {pipeline.f:g};"
        f" exchange {type(exchange).__name__} trusts {exchange.trusts}; {torch.get_num_threads()} torch threads per rank"
    )
    weights = pipeline.weights or [1.0] * placement.workers
    crowded = [
        list(workers)
        for workers in map(placement.of, range(placement.ranks))
        if sum(weights[worker] for worker in workers) > pipeline.f_weight
    ]
    if placement.ranks > 1 and crowded:
        line += f"; one broken machine exceeds f: workers {', '.join(map(str, crowded))} share a rank"
    return line if pipeline.weights is None else line + _on_weights(pipeline, pipeline.weights)


def _on_weights(pipeline: Pipeline, weights: Sequence[float | int]) -> str:
    """Return what unequal weights mean for f."""
    text = f"; weights {', '.join(f'{weight:.4g}' for weight in weights)}, of which f is {pipeline.f_weight:.4g}"
    if pipeline.f:
        text += f"; workers {heaviest_coalition(pipeline, weights)} together exceed it"
    if heavy := heavy_workers(pipeline):
        text += f"; workers {heavy} alone do, and are trusted"
    return text


def _largest(make: Callable[[float], Pipeline], workers: int) -> Pipeline:
    for f in range((workers - 1) // 2, 0, -1):
        pipeline = make(float(f))
        try:
            pipeline.check()
        except ToleranceError:
            continue
        return pipeline
    pipeline = make(0.0)
    pipeline.check()
    return pipeline
