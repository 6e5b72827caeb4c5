"""What every attack keeps to: rows out of rows, wherever coordinates lie, from its arguments alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.attacks import Attack, Sight
from lightning_byz.random import Streams
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_close, require_equal
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.law import law
from lightning_byz.testing.laws.layout import LENGTHS, spread_out
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import Watch


def _past(attack: Attack, case: Case, attackers: Sequence[int], d: int, dtype: torch.dtype) -> dict[int, list[Tensor]]:
    """Where the attack remembers rows: those of the last steps, fewer at the start of a run."""
    if not attack.remembers:
        return {}
    count = case.whole(0, attack.remembers)
    case.note(past=count)
    return {worker: list(case.normal(count, d).to(dtype)) for worker in attackers}


def _sent(attack: Attack, sight: Sight) -> Tensor:
    """What the attack sends; its past cut as the stack is, its draws the same every time."""
    stack = sight.stack
    low, high = (0, stack.vectors.shape[1]) if stack.slice is None else (stack.slice.start, stack.slice.stop)
    past = {worker: [row[low:high] for row in rows] for worker, rows in sight.past.items()}
    return attack.replace(replace(sight, past=past, generator=torch.Generator().manual_seed(1)))


def _example(attack: Attack, case: Case, d: int, dtype: torch.dtype) -> Sight:
    fixed, dtypes = case.settings.get("attackers"), case.settings.get("dtypes") or DTYPES
    n = case.whole(2, 13) if fixed is None else max(fixed) + case.whole(2, 8)
    attackers = sorted(case.order(n)[: case.whole(1, n - 1)].tolist()) if fixed is None else sorted(fixed)
    dtype = dtype if dtype in dtypes else dtypes[0]
    weights = case.one_of([None, (torch.rand(n, generator=case.generator) + 0.1).double()])
    case.note(n=n, attackers=attackers, d=d, dtype=dtype, weights=1 if weights is None else weights.tolist())
    f = 0.49 * float(n if weights is None else weights.sum())
    stack = Stack(spread_out(case, n, d, dtype), weights, min(f, len(attackers)))
    past = _past(attack, case, attackers, d, dtype)
    step = case.seed + max(map(len, past.values()), default=0)
    case.note(step=step)
    return Sight(stack, attackers, torch.Generator(), CoordinateMedian(), past, ages=[0] * n, step=step)


@law("slices of whole blocks, however they are cut, give the bits of the whole", part=0.2)
def attack_slices(attack: Attack, case: Case) -> None:
    """1 to 12 slices."""
    sight = _example(attack, case, LENGTHS[case.seed % len(LENGTHS)], DTYPES[case.seed % len(DTYPES)])
    ends = cuts_of(sight.stack.vectors.shape[1], case.one_of([1, 2, 3, 12]), case.generator)
    case.note(cuts=ends)
    whole = _sent(attack, sight)
    pieces = on_slices(lambda part: _sent(attack, replace(sight, stack=part)), sight.stack, ends)
    require_equal(torch.cat(pieces, dim=1), whole, "the slices together")


@law("an attack sends one row per attacker, of the rows' dtype, and writes to nothing", part=0.3)
def attack_rows(attack: Attack, case: Case) -> None:
    """The rows it sends may be rows of the stack."""
    sight = _example(attack, case, 70, DTYPES[case.seed % len(DTYPES)])
    past = [row for rows in sight.past.values() for row in rows]
    before, past_before, attackers = sight.stack.vectors.clone(), [row.clone() for row in past], len(sight.attackers)
    rows = _sent(attack, sight)
    expected = f"a tensor of {attackers} rows of 70 coordinates is expected of {attackers} attackers"
    require(
        isinstance(rows, Tensor) and rows.shape == (attackers, 70),
        f"{expected}, not {getattr(rows, 'shape', type(rows).__name__)}",
    )
    require(
        rows.dtype == before.dtype and rows.device == before.device, f"the rows sent are {rows.dtype} on {rows.device}"
    )
    require_equal(sight.stack.vectors, before, "the rows of the stack afterwards")
    for row, kept in zip(past, past_before, strict=True):
        require_equal(row, kept, "the past afterwards")


@law("an attack draws from its generator only", part=0.2)
def attack_randomness(attack: Attack, case: Case) -> None:
    """Equal seeds give equal bits, and global random state is left alone."""
    sight = _example(attack, case, 70, torch.float32)
    stack, watch = sight.stack, Watch()
    first = _sent(attack, sight).clone()
    watch.require_untouched()
    with Streams(torch.device("cpu")).inside(case.seed):
        again = replace(sight, stack=Stack(stack.vectors, stack.weights, stack.f))
        require_equal(_sent(attack, again), first, "a second time")


@law("weights times a factor change nothing, and rows without weight tell the attackers nothing", part=0.2)
def attack_weights(attack: Attack, case: Case) -> None:
    """For honest rows; attackers keep theirs."""
    sight = _example(attack, case, 70, torch.float64)
    stack = sight.stack
    silent = [row for row in range(len(stack.weights)) if row not in sight.attackers and case.chance(0.3)]
    weights = stack.weights.clone()
    weights[silent] = 0.0
    f = min(stack.f, 0.49 * float(weights.sum()))
    case.note(absent=silent)
    first = _sent(attack, replace(sight, stack=Stack(stack.vectors, weights, f)))
    larger = _sent(attack, replace(sight, stack=Stack(stack.vectors, weights * 8, f * 8)))
    other = stack.vectors.clone()
    other[silent] = 5.0
    unseen = _sent(attack, replace(sight, stack=Stack(other, weights, f)))
    for rows, what in (
        (larger, "with weights eight times as large"),
        (unseen, "with other values in rows without weight"),
    ):
        require_equal(rows.isfinite(), first.isfinite(), f"which are finite, {what}")
        require_close(rows.nan_to_num(), first.nan_to_num(), what)


@law("a batch comes back as a batch, and the one that was given is not written to", part=0.2)
def attack_batch(attack: Attack, case: Case) -> None:
    """Pairs of inputs and targets, or the batch that the caller gives; equal seeds give equal batches."""
    batch = case.settings.get("batch")
    batch = [case.normal(6, 3), torch.randint(0, 10, (6,), generator=case.generator)] if batch is None else batch
    before, watch = [part.clone() for part in _tensors(batch)], Watch()
    first, second = (attack.poison(batch, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    sent = _tensors(first)
    require(
        type(first) is type(batch) and len(sent) == len(before),
        f"{len(before)} tensors came in, {len(sent)} in {type(first).__name__} came out",
    )
    for part, again, given, kept in zip(sent, _tensors(second), _tensors(batch), before, strict=True):
        require_equal(again, part, "a second time")
        require(part.shape == kept.shape and part.dtype == kept.dtype, f"{tuple(part.shape)} of {part.dtype} came out")
        require_equal(given, kept, "the batch afterwards")
    watch.require_untouched()


def _tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = (
        batch
        if isinstance(batch, list | tuple)
        else batch.values()
        if isinstance(batch, Mapping)
        else getattr(batch, "__dict__", {}).values()
    )
    return [tensor for part in parts for tensor in _tensors(part)]
