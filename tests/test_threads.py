"""Work shared among threads: each part once, the same bits on any number of threads, whoever calls and after whatever."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lightning_byz.blocks import Blocks, block_size
from lightning_byz.kernels import (
    coordinate_median,
    cross_products,
    majority_signs,
    mean_around_median,
    moments,
    ordering,
    sampled_products,
    scaled_rows,
    square_sums,
    trimmed_mean,
    unusable,
    weighted_rows,
)
from lightning_byz.threads import spread
from tests.test_kernels import bits, many


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of torch's threads, for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_a_new_thread(call: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(call).result()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("length", "grain"), [(0, 3), (2, 3), (3, 3), (4, 3), (7, 3), (100, 7), (1000, 1)])
def test_runs_make_up_the_length_and_start_at_grains(
    threads: Callable[[int], None], count: int, length: int, grain: int
) -> None:
    threads(count)
    for alone in (False, True):
        runs: list[tuple[int, int]] = []
        spread(lambda low, high, runs=runs: runs.append((low, high)), length, grain, alone=alone)
        runs.sort()
        assert [low for low, _ in runs] == [0, *(high for _, high in runs[:-1])]
        assert runs[-1][1] == length
        assert all(low % grain == 0 for low, _ in runs)
        assert (len(runs) > 1) == (count > 1 and length > grain)


def test_each_run_has_one_thread_of_torch_and_the_caller_keeps_its_own(threads: Callable[[int], None]) -> None:
    threads(3)
    seen: list[tuple[int, int]] = []
    here = threading.get_ident()
    spread(lambda low, high: seen.append((torch.get_num_threads(), threading.get_ident())), 100, 1)
    assert {count for count, _ in seen} == {1}
    assert here not in {thread for _, thread in seen}
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
    seen.clear()
    spread(lambda low, high: seen.append((torch.get_num_threads(), threading.get_ident())), 1, 1)
    assert seen == [(3, here)]
    seen.clear()
    spread(lambda low, high: seen.append((torch.get_num_threads(), threading.get_ident())), 1, 1, alone=True)
    assert [count for count, _ in seen] == [1]


def test_a_caller_with_threads_of_its_own_leaves_the_process_what_it_had(threads: Callable[[int], None]) -> None:
    threads(2)

    def other() -> int:
        torch.get_num_threads()
        spread(lambda low, high: None, 5, 1)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
        threads(5)  # of this thread and of those to come
        assert pool.submit(other).result() == 2
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 5


def test_errors_reach_the_caller_after_the_last_run(threads: Callable[[int], None]) -> None:
    threads(2)
    done: list[int] = []
    others = threading.Event()

    def work(low: int, high: int) -> None:
        if low == 0:
            others.set()
            raise KeyError("the first run")
        others.wait(10)
        done.append(low)

    with pytest.raises(KeyError, match="the first run"):
        spread(work, 8, 1)
    assert sorted(done) == list(range(1, 8))


def test_work_may_spread_again(threads: Callable[[int], None]) -> None:
    threads(2)
    seen = torch.zeros(8, 10)

    def outer(low: int, high: int) -> None:
        spread(lambda first, last: seen[low:high, first:last].add_(1.0), 10, 1)

    spread(outer, 8, 1)
    assert bool((seen == 1).all())


def test_modes_of_the_caller_hold_for_the_work(threads: Callable[[int], None]) -> None:
    threads(2)
    seen: list[tuple[bool, bool]] = []

    def work(low: int, high: int) -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    for mode, expected in (
        (torch.inference_mode, (True, False)),
        (torch.no_grad, (False, False)),
        (torch.enable_grad, (False, True)),
    ):
        with mode():
            spread(work, 8, 1)
        assert set(seen) == {expected}
        seen.clear()


def test_several_callers_at_once_and_numbers_that_change(threads: Callable[[int], None]) -> None:
    rows = many(5, 150_000, torch.float32)
    expected = coordinate_median(rows, [1.0] * 5)
    together = threading.Barrier(4)

    def calls(own: int) -> bool:
        torch.set_num_threads(own)
        together.wait(10)
        same = True
        for turn in range(6):
            torch.set_num_threads(1 + (own + turn) % 3)
            same &= torch.equal(coordinate_median(rows, [1.0] * 5), expected)
        return same

    threads(2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(calls, (1, 2, 3, 2))) == [True] * 4


FORKED = """
import os, sys, torch
from lightning_byz.kernels import coordinate_median, cross_products
from lightning_byz.blocks import Blocks
torch.set_num_threads(2)
rows = torch.randn(9, 300_000)
def both():
    return coordinate_median(rows, [1.0] * 9), cross_products(rows, rows[0], Blocks.of(300_000, 1216))
before = both()
child = os.fork()
if child == 0:
    os._exit(0 if all(map(torch.equal, both(), before)) else 3)
assert all(map(torch.equal, both(), before))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_after_a_fork() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


def kernels(rows: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Every kernel that shares its work."""
    n, d = rows.shape
    ones, unequal, f = [1.0] * n, [1 + row / 7 for row in range(n)], 0.3 * n
    blocks, factors = Blocks.of(d, block_size(d)), torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    matrix, point = torch.outer(factors, factors.flip(0)), rows[0].clone()
    broken = rows.clone()
    broken[n // 2, d // 2 :] = torch.inf
    columns = torch.arange(0, d, 7)
    return {
        **{
            f"{kernel.__name__} of {weights[-1]:g}": lambda kernel=kernel, rest=rest, weights=weights: kernel(
                rows, weights, *rest
            )
            for kernel, *rest in ((coordinate_median,), (trimmed_mean, f), (mean_around_median, f))
            for weights in (ones, unequal)
        },
        "weighted_rows": lambda: weighted_rows(rows, matrix, blocks),
        "weighted_rows about": lambda: weighted_rows(rows, matrix, blocks, point),
        "weighted_row": lambda: weighted_rows(rows, matrix[:1], blocks),
        "weighted_row about": lambda: weighted_rows(rows, matrix[:1], blocks, point),
        "scaled_rows": lambda: scaled_rows(rows, factors, [0, n - 1]),
        "majority_signs": lambda: majority_signs(rows, factors, blocks),
        "moments": lambda: torch.stack(moments(rows, factors / factors.sum(), blocks)),
        "cross_products": lambda: cross_products(rows, point, blocks),
        "sampled_products": lambda: sampled_products(rows, tuple(unequal), columns, blocks),
        "square_sums": lambda: square_sums(rows, point, blocks),
        "unusable": lambda: unusable(broken),
    }


@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [
        (9, 200_001, torch.float32),
        (5, 140_000, torch.bfloat16),
        (4, 140_000, torch.float64),
        (33, 9000, torch.float32),
        (64, 16_384, torch.float32),
        (100, 16_384, torch.float32),
        (20, 40_000, torch.float16),
        (2, 100, torch.float32),
        (3, 0, torch.float32),
    ],
)
def test_bits_are_the_same_on_any_number_of_threads(
    threads: Callable[[int], None], n: int, d: int, dtype: torch.dtype
) -> None:
    rows = many(n, d, dtype) if d else torch.empty(n, 0, dtype=dtype)
    if d:
        rows[:, 3] = 1.0  # the largest numbers, whose sums may overflow
    before, results = rows.clone(), {}
    for count in (1, 2, 3):
        threads(count)
        with torch.inference_mode(count == 2):
            results[count] = {name: kernel() for name, kernel in kernels(rows).items()}
    assert torch.equal(bits(rows), bits(before))
    for count in (2, 3):
        for name, expected in results[1].items():
            assert torch.equal(bits(results[count][name]), bits(expected)), (name, count)


def test_sorts_are_shared_too(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more rows than networks order, and in chunks that are not whole numbers of anything."""
    monkeypatch.setattr(ordering, "_SORTED", 300 * 701)
    rows = many(300, 5000, torch.float32)
    results = {}
    for count in (1, 2, 3):
        threads(count)
        results[count] = [kernel() for name, kernel in kernels(rows).items() if " of " in name]
    for count in (2, 3):
        for got, expected in zip(results[count], results[1], strict=True):
            assert torch.equal(bits(got), bits(expected))
