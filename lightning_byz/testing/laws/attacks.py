"""What every attack keeps to: rows out of rows, wherever coordinates lie, from its arguments alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.attacks import Attack
from lightning_byz.random import Streams
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_close, require_equal
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.law import law
from lightning_byz.testing.laws.layout import LENGTHS, spread_out
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import Watch


def _past(
    attack: Attack, case: Case, attackers: Sequence[int], d: int, dtype: torch.dtype
) -> dict[int, list[Tensor]] | None:
    """Where the attack keeps rows: those of the last steps, fewer at the start of a run."""
    if not attack.keeps:
        return None
    count = case.whole(0, attack.keeps)
    case.note(past=count)
    return {worker: list(case.normal(count, d).to(dtype)) for worker in attackers}


def _sent(attack: Attack, stack: Stack, attackers: Sequence[int], past: dict[int, list[Tensor]] | None) -> Tensor:
    """What the attack sends; its past cut as the stack is."""
    more: dict[str, Any] = {}
    if past is not None:
        low, high = (0, stack.vectors.shape[1]) if stack.slice is None else (stack.slice.start, stack.slice.stop)
        more["past"] = {worker: [row[low:high] for row in rows] for worker, rows in past.items()}
    return attack.replace(
        stack, attackers, generator=torch.Generator().manual_seed(1), defence=CoordinateMedian(), **more
    )


def _example(
    attack: Attack, case: Case, d: int, dtype: torch.dtype
) -> tuple[Stack, list[int], dict[int, list[Tensor]] | None]:
    fixed, dtypes = case.settings.get("attackers"), case.settings.get("dtypes") or DTYPES
    n = case.whole(2, 13) if fixed is None else max(fixed) + case.whole(2, 8)
    attackers = sorted(case.order(n)[: case.whole(1, n - 1)].tolist()) if fixed is None else sorted(fixed)
    dtype = dtype if dtype in dtypes else dtypes[0]
    weights = case.one_of([None, (torch.rand(n, generator=case.generator) + 0.1).double()])
    case.note(n=n, attackers=attackers, d=d, dtype=dtype, weights=1 if weights is None else weights.tolist())
    f = 0.49 * float(n if weights is None else weights.sum())
    return (
        Stack(spread_out(case, n, d, dtype), weights, min(f, len(attackers))),
        attackers,
        _past(attack, case, attackers, d, dtype),
    )


@law("slices of whole blocks, however they are cut, give the bits of the whole", part=0.2)
def attack_slices(attack: Attack, case: Case) -> None:
    """1 to 12 slices."""
    stack, attackers, past = _example(attack, case, LENGTHS[case.seed % len(LENGTHS)], DTYPES[case.seed % len(DTYPES)])
    ends = cuts_of(stack.vectors.shape[1], case.one_of([1, 2, 3, 12]), case.generator)
    case.note(cuts=ends)
    whole = _sent(attack, stack, attackers, past)
    pieces = on_slices(lambda part: _sent(attack, part, attackers, past), stack, ends)
    require_equal(torch.cat(pieces, dim=1), whole, "the slices together")


@law("an attack sends one row per attacker, of the rows' dtype, and writes to nothing", part=0.3)
def attack_rows(attack: Attack, case: Case) -> None:
    """The rows it sends may be rows of the stack."""
    stack, attackers, past = _example(attack, case, 70, DTYPES[case.seed % len(DTYPES)])
    before, past_before = stack.vectors.clone(), [row.clone() for rows in (past or {}).values() for row in rows]
    rows = _sent(attack, stack, attackers, past)
    expected = f"a tensor of {len(attackers)} rows of 70 coordinates is expected of {len(attackers)} attackers"
    require(
        isinstance(rows, Tensor) and rows.shape == (len(attackers), 70),
        f"{expected}, not {getattr(rows, 'shape', type(rows).__name__)}",
    )
    require(
        rows.dtype == before.dtype and rows.device == before.device, f"the rows sent are {rows.dtype} on {rows.device}"
    )
    require_equal(stack.vectors, before, "the rows of the stack afterwards")
    for row, kept in zip([row for rows in (past or {}).values() for row in rows], past_before, strict=True):
        require_equal(row, kept, "the past afterwards")


@law("an attack draws from its generator only", part=0.2)
def attack_randomness(attack: Attack, case: Case) -> None:
    """Equal seeds give equal bits, and global random state is left alone."""
    stack, attackers, past = _example(attack, case, 70, torch.float32)
    watch = Watch()
    first = _sent(attack, stack, attackers, past).clone()
    watch.require_untouched()
    with Streams(torch.device("cpu")).inside(case.seed):
        require_equal(
            _sent(attack, Stack(stack.vectors, stack.weights, stack.f), attackers, past), first, "a second time"
        )


@law("weights times a factor change nothing, and rows without weight tell the attackers nothing", part=0.2)
def attack_weights(attack: Attack, case: Case) -> None:
    """For honest rows; attackers keep theirs."""
    stack, attackers, past = _example(attack, case, 70, torch.float64)
    silent = [row for row in range(len(stack.weights)) if row not in attackers and case.chance(0.3)]
    weights = stack.weights.clone()
    weights[silent] = 0.0
    f = min(stack.f, 0.49 * float(weights.sum()))
    case.note(absent=silent)
    first = _sent(attack, Stack(stack.vectors, weights, f), attackers, past)
    larger = _sent(attack, Stack(stack.vectors, weights * 8, f * 8), attackers, past)
    other = stack.vectors.clone()
    other[silent] = 5.0
    unseen = _sent(attack, Stack(other, weights, f), attackers, past)
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
