"""What every code keeps to: liars are named, the mean is exact, and slices decode alone."""

import torch
from torch import Tensor

from lightning_byz.codes import Code
from lightning_byz.random import generator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_bits, require_equal
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.law import law
from lightning_byz.testing.running import Watch

_MOST = 40
_EXACT = {torch.float64: 1e-13, torch.float32: 1e-5}


class _Step:
    """The honest rows of one step of some number of workers, and who is to lie."""

    def __init__(self, code: Code, case: Case) -> None:
        self.code, self.total = code, case.one_of([1, 63, 130, 700, 1003])
        self.dtype = (torch.float32, torch.float64)[case.seed % 2]
        self.workers = case.one_of(_numbers(code))
        case.note(workers=self.workers, coordinates=self.total, dtype=self.dtype)
        self.groups, self.parts = code.groups(self.workers), code.parts(self.workers)
        self.gradients = case.normal(1 + max(map(max, self.parts)), self.total).pow(3).to(self.dtype)
        self.where = code.coordinates(self.total)
        self.rows = torch.stack([self.encoded(worker) for worker in range(self.workers)])
        self.mean = self.gradients.double().mean(0)
        self.liars = [
            group[int(row)] for group in self.groups for row in case.order(len(group))[: case.whole(0, code.s)]
        ]

    def encoded(self, worker: int) -> Tensor:
        own = [self.gradients[part] for part in self.parts[worker]]
        return self.code.encode(worker, own, self.where, workers=self.workers)

    def lied(self, case: Case) -> Tensor:
        kind = case.one_of(["reverse", "constant", "noise", "not finite", "huge"])
        case.note(liars=self.liars, lie=kind)
        rows = self.rows.clone()
        for liar in self.liars:
            row = rows[liar]
            rows[liar] = {
                "reverse": -100 * row,
                "constant": torch.full_like(row, 7.5),
                "noise": row + row.square().mean().sqrt() * case.normal(len(row)).to(row.dtype),
                "not finite": torch.full_like(row, case.one_of([float("nan"), float("inf")])),
                "huge": torch.full_like(row, 3e38),
            }[kind]
        return rows

    def plain(self, rows: Tensor) -> set[int]:
        """Who lies by more than a hundredth of the longest row."""
        apart = torch.linalg.vector_norm(rows.double() - self.rows.double(), dim=1)
        longest = torch.linalg.vector_norm(self.rows.double(), dim=1).max()
        return {liar for liar in self.liars if not bool(apart[liar] <= longest / 100)}

    def found(self, rows: Tensor, key: int = 0) -> list[int]:
        drawn = self.code.project(rows, self.where, generator=generator(key, "law"))
        return [*self.code.locate(drawn, dtype=self.dtype)]


def _numbers(code: Code) -> list[int]:
    """Up to three numbers of workers that the code can be spread over."""
    fitting = []
    for workers in range(1, _MOST + 1):
        try:
            code.check(workers)
        except ValueError:
            continue
        fitting.append(workers)
    require(bool(fitting), f"check refuses every number of workers from 1 to {_MOST}")
    return fitting[:3]


@law("workers are in one group each, where every part is computed more than s times; rows are as long as laid out")
def code_parts(code: Code, case: Case) -> None:
    """All workers and all parts, from 0 on."""
    step = _Step(code, case)
    workers = [worker for group in step.groups for worker in group]
    require(sorted(workers) == [*range(step.workers)], f"groups hold workers {workers}")
    computed = [part for held in step.parts for part in set(held)]
    parts = sorted(set(computed))
    require(parts == [*range(len(parts))], f"parts are {parts}")
    fewest = min(computed.count(part) for part in parts)
    require(fewest > 2 * code.s, f"a part is computed {fewest} times, which {code.s} liars can outvote")
    shape = step.workers, step.where.coded
    require(tuple(step.rows.shape) == shape, f"rows have the shape {tuple(step.rows.shape)}, not {shape}")
    require(
        step.rows.dtype == code.dtype(step.dtype),
        f"rows are {step.rows.dtype}, and dtype says {code.dtype(step.dtype)}",
    )


@law("up to s liars in each group are named, nobody honest is, and the mean of all parts comes out", part=2.0)
def code_recovery(code: Code, case: Case) -> None:
    """Whatever is drawn."""
    step = _Step(code, case)
    rows = step.lied(case)
    found: list[int] = []
    for key in range(3):
        found = step.found(rows, key)
        named = step.plain(rows) <= set(found) <= set(step.liars) and len(set(found)) == len(found)
        require(named, f"named were {found}")
    mean = code.decode(rows, found, step.where).double()
    error = float((mean - step.mean).norm() / step.mean.norm())
    require(error <= _EXACT[step.dtype], f"the mean is off by {error:.2g} of itself")


@law("slices decode to the bits of the whole, and find the same liars", part=0.5)
def code_slices(code: Code, case: Case) -> None:
    """Cut between blocks, empty slices among them."""
    step = _Step(code, case)
    rows = step.lied(case)
    ends, mean = cuts_of(step.where.coded, case.whole(2, 4), case.generator), code.decode(rows, step.liars, step.where)
    projections = code.project(rows, step.where, generator=generator(0, "law"))

    def part(stack: Stack) -> tuple[Tensor, Tensor, tuple[int, int]]:
        assert stack.slice is not None
        own = step.where.decoded(stack.slice)
        seen = code.project(stack.vectors, step.where, stack.slice, generator=generator(0, "law"))
        return seen, code.decode(stack.vectors, step.liars, step.where, stack.slice), (own.start, own.stop)

    for seen, decoded, (start, stop) in on_slices(part, Stack(rows), ends):
        require_equal(seen, projections, f"what is looked at of the slice from {start} to {stop}")
        require_bits(decoded, mean[start:stop], f"the mean from {start} to {stop}")


@law("nothing but what is returned is written, equal arguments give equal bits, and no global draw is used", part=0.5)
def code_purity(code: Code, case: Case) -> None:
    """Into memory that is given, too."""
    step = _Step(code, case)
    rows, gradients = step.rows.clone(), step.gradients.clone()
    watch = Watch()
    for worker in range(step.workers):
        own = [step.gradients[part] for part in step.parts[worker]]
        place = torch.full_like(rows[worker], float("nan"))
        written = code.encode(worker, own, step.where, workers=step.workers, out=place)
        require_bits(written, rows[worker], f"the row of worker {worker}, written to memory that is given")
    found, place = step.found(step.rows), torch.full((step.total,), float("nan"), dtype=step.dtype)
    mean = code.decode(step.rows, found, step.where)
    require_bits(
        code.decode(step.rows, found, step.where, out=place), mean, "the mean, written to memory that is given"
    )
    watch.require_untouched()
    require_bits(step.rows, rows, "rows after the calls")
    require_bits(step.gradients, gradients, "gradients after the calls")
