"""Adversarial cases by the thousand: ``python -m tests.fuzz --cases 100000``, and a small part of it as a test.

Each case, of honest rows of some kind and a coalition of attackers, is made once and given to every rule that tolerates it; in every tenth the
attackers go on from there, moving their rows as long as error^2 / (kappa variance) of one rule grows.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_byz.aggregators import Aggregator
from lightning_byz.testing.case import Case
from lightning_byz.testing.faults import Attacked, attacked
from lightning_byz.testing.rows import DTYPES, cast
from lightning_byz.testing.running import run
from lightning_byz.testing.sizes import tolerated, uneven, workers
from tests.contracts.subjects import RULES, label, workers_of

NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


@dataclass
class Record:
    """What one rule did in one dtype."""

    rule: Aggregator
    dtype: torch.dtype
    cases: int = 0
    non_finite: int = 0
    violations: int = 0
    errors: int = 0
    worst: float = -1.0
    seconds: float = 0.0
    first: str = ""
    most_workers: int = field(init=False)

    def __post_init__(self) -> None:
        self.most_workers = workers_of(self.rule)

    @property
    def bad(self) -> int:
        return self.non_finite + self.violations + self.errors

    def takes(self, problem: Attacked) -> bool:
        if len(problem.weights) > self.most_workers:
            return False
        unit = self._unit(problem)
        return unit > 0 and tolerated(self.rule, problem.weights / unit, problem.f / unit)

    def judge(self, problem: Attacked, name: str) -> float:
        """The ratio of this case, -1 without a bound."""
        start, unit, ratio = time.perf_counter(), self._unit(problem), -1.0
        self.cases += 1
        try:
            result = run(self.rule, problem.stack())
            kappa = self.rule.kappa(float(problem.weights.sum()) / unit, problem.f / unit)
            finite = bool(result.isfinite().all())
            ratio = problem.ratio(result, kappa) if finite and kappa is not None else -1.0
            self.non_finite, self.violations, self.worst = (
                self.non_finite + (not finite),
                self.violations + (ratio > 1),
                max(self.worst, ratio),
            )
            self._remember(not finite or ratio > 1, f"{name}: {'not finite' if not finite else f'ratio {ratio:.3g}'}")
        except Exception as error:
            self.errors += 1
            self._remember(True, f"{name}: {type(error).__name__}: {error}")
        self.seconds += time.perf_counter() - start
        return ratio

    def _remember(self, bad: bool, what: str) -> None:
        self.first = self.first or (what[:200] if bad else "")

    def _unit(self, problem: Attacked) -> float:
        """1, or what each row weighs for a rule that takes equal weights only; 0 where they are not equal."""
        if self.rule.unequal_weights:
            return 1.0
        low, high = problem.weights.aminmax()
        return float(high) if low == high else 0.0


def problem_of(seed: int, dtype: torch.dtype) -> tuple[Case, Attacked]:
    """One case, for whichever rules tolerate it: mostly weights of 1, and a whole f at one of the usual limits."""
    case = Case("fuzz", seed)
    n = workers(case)
    limits = [(n - 1) // 2, (n - 1) // 3, (n - 1) // 4, (n - 3) // 4, 1]
    attackers = min(max(case.one_of(limits) if case.chance(0.6) else case.whole(0, (n - 1) // 2), 0), (n - 1) // 2)
    weights = torch.ones(n, dtype=torch.float64) if case.chance(0.7) else uneven(case, n)
    f = float(weights[n - attackers :].sum())
    f = f + case.real(0, 1) * max(float(weights.sum()) / 2 - f, 0.0) if case.chance(0.15) else f
    if not float(weights[: n - attackers].sum()) > 0:
        weights = torch.ones(n, dtype=torch.float64)
        f = float(attackers)
    problem = attacked(case, weights, attackers, f, dtype)
    d = problem.rows.shape[1]
    near = cast(case.normal(d) * 10 ** case.real(-3, 3), dtype)
    return case, replace(
        problem, reference=case.one_of([None, near, cast(problem.rows[case.whole(0, n - 1)].nan_to_num(), dtype)])
    )


def climbed(case: Case, problem: Attacked, record: Record, name: str, moves: int = 12) -> None:
    """Move the rows that are not honest as long as the ratio grows."""
    honest = {tuple(row) for row in problem.honest.tolist()}
    free = torch.tensor([tuple(row) not in honest for row in problem.rows.tolist()])
    spread, best = float(problem.honest.double().std(0, correction=0).max()), -1.0
    if not (bool(free.any()) and 0 < spread < float("inf")):
        return
    rows = problem.rows.double().nan_to_num()
    for move in range(moves):
        step = (
            10 ** case.real(-3, 1)
            * spread
            * case.normal(1, rows.shape[1])
            * (case.one_of([True, False]) | (torch.rand(len(rows), generator=case.generator) < 0.5))[:, None]
        )
        trial = torch.where(free[:, None], rows + step, rows)
        tried = Attacked(cast(trial, problem.rows.dtype), problem.weights, problem.f, problem.honest, problem.shares)
        ratio = record.judge(tried, f"{name}, move {move}")
        if ratio >= best:
            rows, best = trial, ratio


def fuzz(rules: Sequence[Aggregator], dtype: torch.dtype, cases: int, seed: int) -> Iterator[list[Record]]:
    """The records as they grow, until each rule has had ``cases`` cases."""
    records = [Record(rule, dtype) for rule in rules]
    for own in range(seed, seed + 40 * cases):
        case, problem = problem_of(own, dtype)
        waiting = [record for record in records if record.cases < cases]
        taking = [record for record in waiting if record.takes(problem)]
        for record in taking:
            record.judge(problem, f"seed {own}")
        if own % 10 == 0 and taking:
            record = taking[own // 10 % len(taking)]
            climbed(case, problem, record, f"seed {own}")
        yield records
        if not waiting:
            return


def table_of(records: Sequence[Record]) -> Table:
    table = Table(
        "rule", "dtype", "cases", "not finite", "beyond kappa", "errors", "worst err²/(kappa var)", "seconds", "first"
    )
    for record in records:
        worst = f"{record.worst:.3f}" if record.worst >= 0 else "no bound"
        numbers = (
            record.cases,
            record.non_finite,
            record.violations,
            record.errors,
            worst,
            f"{record.seconds:.1f}",
            record.first,
        )
        style = "red" if record.bad else None
        table.add_row(label(record.rule), str(record.dtype).removeprefix("torch."), *map(str, numbers), style=style)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="cases per rule and dtype")
    parser.add_argument("--rules", nargs="*", default=[], help="parts of the names of the rules; all if none is given")
    parser.add_argument("--dtypes", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--seed", type=int, default=0, help="the first case")
    parser.add_argument(
        "--processes", type=int, default=1, help="of one thread each; parts of the cases run side by side"
    )
    given = parser.parse_args(arguments)
    rules = [rule for rule in RULES if not given.rules or any(part in label(rule) for part in given.rules)]
    if not rules:
        parser.error(f"no rule's name holds any of {given.rules}")
    jobs = list(parts(rules, given.dtypes, given.cases, given.seed))
    done: list[Record] = []
    with (
        Progress(console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(given.processes, get_context("spawn")) as pool,
    ):
        task = progress.add_task("cases", total=given.cases * len(rules) * len(given.dtypes))
        waiting = [pool.submit(run_part, *job) for job in jobs]
        for finished in as_completed(waiting):
            done += finished.result()
            progress.update(task, completed=sum(record.cases for record in done))
    Console(width=200).print(table_of(merged(done)))
    return int(any(record.bad for record in done))


def parts(
    rules: Sequence[Aggregator], dtypes: Sequence[str], cases: int, seed: int, size: int = 250
) -> Iterator[tuple[list[Aggregator], str, int, int]]:
    """What one process does at a time: rules, dtype, cases, first seed; parts draw cases of their own."""
    for start in range(0, cases, size):
        for name in dtypes:
            yield list(rules), name, min(size, cases - start), seed + 40 * start


def run_part(rules: Sequence[Aggregator], dtype: str, cases: int, seed: int) -> list[Record]:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean tolerates")
        *_, records = fuzz(rules, NAMES[dtype], cases, seed)
    return records


def merged(records: Sequence[Record]) -> list[Record]:
    """One record per rule and dtype."""
    result: dict[tuple[str, str], Record] = {}
    for record in records:
        total = result.setdefault((str(record.dtype), label(record.rule)), Record(record.rule, record.dtype))
        for name in ("cases", "non_finite", "violations", "errors", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(record, name))
        total.worst, total.first = max(total.worst, record.worst), total.first or record.first
    return list(result.values())


if __name__ == "__main__":
    sys.exit(main())
