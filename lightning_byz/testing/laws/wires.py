"""What every exchange keeps to on the way of messages: they arrive as they were written, are counted, and the aggregate comes back."""

from collections.abc import Sequence

import torch

from lightning_byz.exchange import Exchange, Wire
from lightning_byz.kernels import unusable
from lightning_byz.testing.case import Case, NothingToCheck, require, require_bits, require_equal
from lightning_byz.testing.law import law
from lightning_byz.testing.opened import LENGTHS, again, due_of, open_wire, random_bits
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.world import on_every_rank


@law("every worker lives on one rank, in order, and has a row of its own there", part=0.3)
@on_every_rank
def exchange_places(exchange: Exchange, case: Case) -> None:
    """Always the same memory; a worker of another rank, or one that does not exist, has none here."""
    opened = open_wire(exchange, case)
    placement, local = opened.placement, list(opened.wire.local)
    spans = opened.world.table([placement.workers, placement.ranks, placement.rank, *_span(local)])
    lived = [worker for *_, first, stop in spans for worker in range(first, stop)]
    require(local == list(placement.local), f"the wire's workers are {local}, the placement's {list(placement.local)}")
    require(lived == list(range(opened.n)), f"the workers of the ranks, in order, are {lived}")
    for rank, (workers, ranks, own, *_) in enumerate(spans):
        seen = f"rank {rank} is placed as rank {own} of {ranks}, with {workers} workers in all"
        require((workers, ranks, own) == (opened.n, opened.world.ranks, rank), seen)
    rows = {worker: opened.wire.row(worker) for worker in local}
    for worker, row in rows.items():
        kind = row.shape == (opened.d,) and row.dtype == opened.dtype and row.device.type == opened.device.type
        require(kind, f"the row of worker {worker} is {tuple(row.shape)} of {row.dtype} on {row.device}")
        require(row.data_ptr() == opened.wire.row(worker).data_ptr(), f"the row of worker {worker} moves")
        row.fill_(worker)
    require(all(bool((row == worker).all()) for worker, row in rows.items()), "rows of two workers share memory")
    for worker in (-1, opened.n, *(worker for worker in range(opened.n) if worker not in local)):
        require(_refused(opened.wire, worker), f"a row for worker {worker} is given, where workers {local} live")


def _span(workers: Sequence[int]) -> tuple[int, int]:
    return (workers[0], workers[-1] + 1) if workers else (0, 0)


def _refused(wire: Wire, worker: int) -> bool:
    try:
        wire.row(worker)
    except KeyError:
        return True
    return False


@law("the ranks' slices are runs of whole blocks that cover every coordinate once, or all see all", part=0.4)
@on_every_rank
def exchange_slices(exchange: Exchange, case: Case) -> None:
    """``starts`` are where they begin, but for empty ones; all coordinates are seen where the exchange says that it has no slices."""
    opened = open_wire(exchange, case)
    own, alone = opened.own, opened.world.ranks == 1 or not exchange.slices
    whole = opened.wire.slice is None or (alone and (own.start, own.stop) == (0, opened.d))
    wholes = opened.world.table([int(whole)])
    covered = torch.zeros(opened.d, dtype=torch.int64)
    covered[own] = 1
    seen = opened.world.sum(covered)
    spans = opened.world.table([own.start, own.stop])
    require(wholes in ([[0]] * len(wholes), [[1]] * len(wholes)), "some ranks have a slice, and others have none")
    expected = "all coordinates" if alone else "slices"
    require(whole == (expected == "all coordinates"), f"{expected} are expected, and the ranks have {spans}")
    times = 1 if not whole else opened.world.ranks
    require(bool((seen == times).all()), f"the ranks' coordinates {spans} do not cover each of {opened.d} once")
    for end in (own.start, own.stop):
        require(end % opened.width == 0 or end == opened.d, f"{spans} are no runs of blocks of {opened.width}")
    if opened.wire.slice is not None:
        require(opened.wire.slice.total == opened.d, f"the slice is one of {opened.wire.slice.total} coordinates")
    starts = sorted({start for start, stop in spans if start < stop})
    require(list(opened.wire.starts) == starts, f"starts are {list(opened.wire.starts)} of {spans}")


@law("partial results of the blocks come together in the order of blocks, and counts are added up", part=0.3)
@on_every_rank
def exchange_partials(exchange: Exchange, case: Case) -> None:
    """``gather`` and ``add`` of a slice, which sums over coordinates go through; some slices are empty."""
    opened = open_wire(exchange, case)
    part, own = opened.wire.slice, opened.own
    if [1] in opened.world.table([int(part is None)]) or part is None:
        raise NothingToCheck
    blocks = -(-opened.d // opened.width)
    first, last = -(-own.start // opened.width), -(-own.stop // opened.width)
    partials = case.normal(blocks, *case.one_of([(), (2,), (3, 3)])).to(opened.device)
    counts = torch.arange(5, device=opened.device) + 2**40
    gathered = part.gather(partials[first:last].clone())
    added, ranks = part.add(counts * (opened.world.rank + 1)), opened.world.ranks
    require_bits(gathered, partials, "partial results gathered")
    # ranks that see all coordinates have counted for themselves
    factor = ranks * (ranks + 1) // 2 if exchange.slices else opened.world.rank + 1
    require_equal(added, counts * factor, "counts added up")


@law("rows arrive as they were written, to the bit, in the order asked for")
@on_every_rank
def exchange_rows(exchange: Exchange, case: Case) -> None:
    """NaN with payloads, infinities, subnormal numbers and both zeros; rows are written again as soon as they were delivered, or kept."""
    opened = open_wire(exchange, case)
    rows, seen = opened.rows(case), []
    opened.write(rows)
    for _ in range(case.whole(1, 3)):
        due = due_of(case, opened)
        vectors, _ = opened.wire.deliver(due, opened.no_facts())
        seen.append((due, vectors.clone(), rows[due][:, opened.own].clone()))
        fresh = opened.rows(case)
        again = torch.rand(opened.n, generator=case.generator) < 0.5
        rows[again] = fresh[again]
        opened.write(rows)
    for due, vectors, expected in seen:
        require_bits(vectors, expected, f"the rows of workers {due}")


@law("numbers that no rule can use are counted in whole rows, and the ranks' facts are added up", part=0.5)
@on_every_rank
def exchange_facts(exchange: Exchange, case: Case) -> None:
    """Alike on all ranks, whichever coordinates each sees; what a rank says is not written to."""
    opened = open_wire(exchange, case)
    rows, due, ranks = opened.rows(case), due_of(case, opened), opened.world.ranks
    said = torch.randint(2**40, (case.whole(0, 5),), generator=case.generator)
    own = said * (opened.world.rank + 1)
    kept = own.clone()
    opened.write(rows)
    _, facts = opened.wire.deliver(due, own)
    expected = torch.cat([unusable(rows[due]).cpu(), said * (ranks * (ranks + 1) // 2)])
    require_equal(facts.cpu(), expected, "unusable numbers per row, and facts")
    require_equal(own, kept, "the facts that this rank gave, afterwards")


@law("every rank gets the whole vector that the ranks' parts make")
@on_every_rank
def exchange_whole(exchange: Exchange, case: Case) -> None:
    """Each time anew, to the bit, from strided parts too; in ``out`` where it is given, of whatever dtype, with rows left alone."""
    opened = open_wire(exchange, case)
    rows, seen = opened.rows(case), []
    opened.write(rows)
    for _ in range(case.whole(1, 3)):
        vectors, _ = opened.wire.deliver(range(opened.n), opened.no_facts())
        given, strided = case.chance(0.5), case.chance(0.5)
        dtype = case.one_of(DTYPES) if given else opened.dtype
        whole = random_bits(case, opened.d, dtype=dtype).to(opened.device)
        part = whole.repeat_interleave(2)[::2][opened.own] if strided else whole[opened.own].clone()
        out, before = torch.empty_like(whole) if given else None, vectors.clone()
        result = opened.wire.assemble(part, out=out)
        seen.append((result.clone(), whole, "the whole vector"))
        if out is None:
            opened.write(rows)  # their memory was free
            continue
        seen.append((out, whole, "what was asked for in out"))
        seen.append((part, whole[opened.own], "the part that was given, afterwards"))
        seen.append((vectors, before, "delivered rows after a vector was assembled elsewhere"))
        seen.extend((opened.wire.row(own).clone(), rows[own], "a row afterwards") for own in opened.wire.local)
    for result, expected, what in seen:
        require_bits(result, expected, what)


@law("wires do not disturb each other", part=0.3)
@on_every_rank
def exchange_apart(exchange: Exchange, case: Case) -> None:
    """Two of one exchange, of other lengths and dtypes or the same, used in turn."""
    one = open_wire(exchange, case)
    other = again(exchange, one) if case.chance(0.5) else open_wire(exchange, case, d=case.one_of(LENGTHS))
    wires, seen = (one, other), []
    rows = [opened.rows(case) for opened in wires]
    wholes = [random_bits(case, opened.d, dtype=opened.dtype).to(opened.device) for opened in wires]
    for opened, own in zip(wires, rows, strict=True):
        opened.write(own)
    vectors = [opened.wire.deliver(range(opened.n), opened.no_facts()).vectors for opened in wires]
    for opened, own, vector in zip(wires, rows, vectors, strict=True):
        seen.append((vector.clone(), own[:, opened.own], "rows delivered, after another wire's"))
    results = [opened.wire.assemble(whole[opened.own].clone()) for opened, whole in zip(wires, wholes, strict=True)]
    for result, whole in zip(results, wholes, strict=True):
        seen.append((result, whole, "a vector assembled, after another wire's"))
    for result, expected, what in seen:
        require_bits(result, expected, what)


@law("received counts the bytes of messages and aggregates that came from other ranks", part=0.4)
@on_every_rank
def exchange_traffic(exchange: Exchange, case: Case) -> None:
    """At the rank's coordinates of other ranks' due rows, and the other coordinates of the aggregate; no more, but for exceptions."""
    opened = open_wire(exchange, case)
    due, wire = due_of(case, opened), opened.wire
    counted = [wire.received]
    opened.write(opened.rows(case))
    vectors, _ = wire.deliver(due, opened.no_facts())
    counted.append(wire.received)
    wire.assemble(torch.zeros(opened.d, dtype=opened.dtype, device=opened.device)[opened.own])
    counted.append(wire.received)
    size, seen = opened.dtype.itemsize, vectors.shape[1]
    away = sum(worker not in opened.wire.local for worker in due)
    needed = [0, away * seen * size, away * seen * size + (opened.d - seen) * size]
    require(counted[0] == 0, f"a wire that was just opened has received {counted[0]} bytes")
    for count, least, what in zip(counted[1:], needed[1:], ("rows", "rows and aggregate"), strict=True):
        exact = "traffic" not in exchange.exceptions
        require(count == least if exact else count >= least, f"{count} bytes were counted of {least} of {what}")
