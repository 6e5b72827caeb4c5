"""Compiled kernels: the same bits as torch's where values are ordered, the same numbers where they are summed, and first uses that go wrong."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_byz import kernels
from lightning_byz.aggregators import CTMA, CoordinateMedian, CoordinateRule, Krum, MeanAroundMedian, TrimmedMean
from lightning_byz.blocks import Blocks, block_size
from lightning_byz.kernels import paths
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack

pytest.importorskip("numba", reason="numba is not installed (the extra fast), so that there are no compiled kernels")

ROOT = Path(__file__).resolve().parent.parent
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = paths.own()
    yield
    paths.choose(before)
    paths.share(True)
    torch.set_num_threads(1)


def on(compiled: bool, function: Callable[[], Any]) -> Any:
    paths.choose(compiled)
    return function()


def bits(values: Tensor) -> Tensor:
    return values.view(WORDS[values.itemsize])


def rows_of(n: int, d: int, dtype: torch.dtype, *, seed: int) -> Tensor:
    """Rows with ties, both zeros, subnormal and huge numbers among ordinary ones."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=draws, dtype=torch.float64)
    kind = torch.randint(0, 8, (d,), generator=draws)
    limits = torch.finfo(dtype)
    huge = 2.0**479 if dtype == torch.float64 else limits.max
    rows = torch.where(kind == 0, (rows * 2).round() / 2, rows)
    rows = torch.where(kind == 1, rows.sign() * 0.0 * rows, rows)
    rows = torch.where(kind == 2, rows * limits.smallest_normal / 8, rows)
    rows = torch.where(kind == 3, rows.clamp(-3, 3) / 3 * huge, rows)
    return rows.to(dtype)


def weights_for(n: int, kind: str) -> list[float]:
    alike, apart = [0.7] * n, torch.linspace(1, 2, n).tolist()
    return {"equal": alike, "unequal": apart, "some zero": [float(row % 3) if n > 1 else 1.0 for row in range(n)]}[kind]


def statistics(rows: Tensor, weights: list[float]) -> dict[str, Callable[[], Tensor]]:
    total, d = sum(weights), rows.shape[1]
    result: dict[str, Callable[[], Tensor]] = {
        "median": lambda: kernels.coordinate_median(rows, weights),
        "signs": lambda: kernels.majority_signs(
            rows, torch.tensor(weights, dtype=torch.float64), Blocks.of(d, block_size(d))
        ),
    }
    for part in (0.0, 0.1, 0.23, 0.45):
        result[f"trimmed {part}"] = lambda part=part: kernels.trimmed_mean(rows, weights, part * total)
        result[f"around {part}"] = lambda part=part: kernels.mean_around_median(rows, weights, part * total)
    return result


def differing(rows: Tensor, weights: list[float]) -> dict[str, int]:
    """How many coordinates differ in a bit, by statistic."""
    counts = {
        name: int((bits(on(False, function)) != bits(on(True, function))).sum())
        for name, function in statistics(rows, weights).items()
    }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("kind", ["equal", "unequal", "some zero"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_statistics_have_the_bits_of_torchs(dtype: torch.dtype, kind: str) -> None:
    for n in (1, 2, 3, 4, 5, 8, 13, 17, 32, 64, 129, 256, 257, 300):
        rows = rows_of(n, 3000 if n < 20 else 600 if n < 100 else 90, dtype, seed=n)
        assert not differing(rows, weights_for(n, kind)), f"{n} rows"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_million_coordinates_have_the_bits_of_torchs(dtype: torch.dtype) -> None:
    rows = rows_of(7, 1_000_000, dtype, seed=1)
    paths.choose(True)
    torch.set_num_threads(2)
    for kind in ("equal", "unequal"):
        assert not differing(rows, weights_for(7, kind)), kind


def test_what_order_statistics_are() -> None:
    """Values written down by hand: what is wrong on both paths alike would not be seen by comparing them."""
    rows = torch.tensor([[1.0, -0.0, 5.0], [2.0, 0.0, 5.0], [4.0, -0.0, 7.0], [8.0, -3.0, 1e30], [16.0, 9.0, -1e30]])
    weights = [1.0, 1.0, 1.0, 1.0, 2.0]
    paths.choose(True)
    assert kernels.coordinate_median(rows, [1.0] * 5).tolist() == [4.0, 0.0, 5.0]
    assert kernels.coordinate_median(rows, weights).tolist() == [6.0, 0.0, 5.0]
    assert kernels.trimmed_mean(rows, [1.0] * 5, 1.0).tolist() == pytest.approx([14 / 3, 0.0, 17 / 3])
    assert kernels.trimmed_mean(rows, weights, 1.5).tolist() == pytest.approx([7.0, 1.5, -5e29 / 3])
    assert kernels.mean_around_median(rows, [1.0] * 5, 2.0).tolist() == pytest.approx([7 / 3, 0.0, 17 / 3])
    assert not bits(kernels.coordinate_median(rows, weights))[1]
    assert kernels.majority_signs(rows, torch.ones(5).double(), Blocks.of(3, 64)).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("n", [1, 3, 17, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_torchs_but_for_rounding(dtype: torch.dtype, n: int) -> None:
    """Partial sums in float64, of which little is lost, and rows that are rounded to their dtype."""
    draws = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 5000, generator=draws).to(dtype)
    point, blocks = rows[0] / 3, Blocks.of(5000, 64)
    matrix = torch.rand(n, n, generator=draws, dtype=torch.float64)
    one = matrix[:1].clone()
    one[0, n // 2] = 0.0

    def partial_sums() -> list[Tensor]:
        return [
            kernels.square_sums(rows, point, blocks),
            kernels.square_sums(rows, None, blocks),
            kernels.square_sums(rows, point.double(), blocks),
            kernels.cross_products(rows, point, blocks),
        ]

    def rounded_rows() -> list[Tensor]:
        return [
            kernels.weighted_rows(rows, one, blocks).double(),
            kernels.weighted_rows(rows, one, blocks, point).double(),
            kernels.weighted_rows(rows, matrix, blocks).double(),
        ]

    torch.testing.assert_close(on(True, partial_sums), on(False, partial_sums), rtol=1e-13, atol=1e-12)
    spacing = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(on(True, rounded_rows), on(False, rounded_rows), rtol=spacing, atol=1e-14)
    exact = (rows.double() - point.double()).square().sum(1)
    torch.testing.assert_close(on(True, partial_sums)[0].sum(0), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_overflows_is_the_largest_number(dtype: torch.dtype) -> None:
    paths.choose(True)
    most = torch.finfo(dtype).max
    rows = torch.full((3, 300), most, dtype=dtype)
    result = kernels.weighted_rows(rows, torch.ones(1, 3, dtype=torch.float64), Blocks.of(300, 64))
    assert result.shape == (1, 300)
    assert bool((result == most).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unusable_numbers_are_counted(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 20_000).to(dtype)
    rows[1, 19_999] = float("nan")
    rows[3, [0, 777]] = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
    rows[4] = torch.finfo(dtype).max if dtype != torch.float64 else 2.0**480
    for compiled in (False, True):
        assert on(compiled, lambda: kernels.unusable(rows)).tolist() == [0, 1, 0, 2, 0]
    if dtype == torch.float64:
        rows[4, 5] = 2.0**481
        assert on(True, lambda: kernels.unusable(rows)).tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("weights", ["equal", "unequal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_found_on_the_way_have_the_bits_of_those_found_later(dtype: torch.dtype, weights: str) -> None:
    paths.choose(True)
    stack = Stack(torch.randn(9, 30_000).to(dtype), weights_for(9, weights), f=1.5)
    for rule in (CoordinateMedian(), TrimmedMean(), MeanAroundMedian()):
        assert torch.equal(rule.distances(stack), stack.squared_distances_to(rule(stack))), rule


def test_a_rule_derived_from_one_by_coordinate_is_asked_for_its_own_result() -> None:
    class Moved(TrimmedMean):
        def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Tensor:
            return super().__call__(stack) + 100

    stack = Stack(torch.randn(9, 500), f=1)
    assert torch.equal(Moved().distances(stack), stack.squared_distances_to(TrimmedMean()(stack) + 100))


def every_kernel(rows: Tensor) -> list[Tensor]:
    n, d = rows.shape
    blocks = Blocks.of(d, block_size(d))
    matrix = torch.linspace(-1, 1, n * n, dtype=torch.float64).view(n, n)
    results = [
        function() for kind in ("equal", "unequal") for function in statistics(rows, weights_for(n, kind)).values()
    ]
    return [
        *results,
        kernels.square_sums(rows, rows[0], blocks),
        kernels.cross_products(rows, rows[0], blocks),
        kernels.weighted_rows(rows, matrix, blocks),
        kernels.weighted_rows(rows, matrix[:1], blocks, rows[0]),
        kernels.unusable(rows),
    ]


def test_bits_do_not_depend_on_threads_nor_on_how_rows_lie() -> None:
    paths.choose(True)
    rows = torch.randn(5, 100_003)
    expected = every_kernel(rows)
    wide, narrow = torch.zeros(5, 100_100), torch.zeros(5, 100_003, 2)
    wide[:, 7:100_010], narrow[:, :, 1] = rows, rows
    with torch.inference_mode():
        inferred = rows.clone()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for given in (rows, wide[:, 7:100_010], narrow[:, :, 1], rows.clone().requires_grad_(), inferred):
            for result, wanted in zip(every_kernel(given), expected, strict=True):
                assert torch.equal(result, wanted)
    same = rows[:1].expand(5, -1)
    assert torch.equal(kernels.coordinate_median(same, [1.0] * 5), rows[0])


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_share_no_memory(compiled: bool) -> None:
    """What is wrong only now and then is right many times."""
    paths.choose(compiled)
    rows = torch.randn(3, 400_000)
    blocks, one = Blocks.of(400_000, 2048), torch.ones(1, 3, dtype=torch.float64)

    def results() -> list[Tensor]:
        return [
            kernels.square_sums(rows, rows[0], blocks),
            kernels.cross_products(rows, rows[1], blocks),
            kernels.weighted_rows(rows, one, blocks, rows[2]),
            kernels.coordinate_median(rows.bfloat16(), [1.0, 2.0, 2.5]),
        ]

    expected = results()
    torch.set_num_threads(4)
    for _ in range(25):
        assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))


@dataclass  # not frozen, so that it has no hash
class Half(CoordinateRule):
    """A rule by coordinate as a user writes it: it answers nothing besides."""

    part: float = 0.5

    def statistic(self, stack: Stack) -> Callable[..., Tensor]:
        return lambda vectors, weights, *, aside: vectors.sum(0) * self.part


class Squared(TrimmedMean):
    def admit(self, stack: Stack) -> Stack:
        clean = super().admit(stack)
        return Stack(clean.vectors**2, clean.weights, clean.f)


def test_rules_by_coordinate_of_ones_own() -> None:
    rows = torch.randn(9, 500)
    stack = Stack(rows, f=1)
    for rule in (Half(), Half(2.0)):
        for compiled in (False, True):
            assert torch.equal(on(compiled, lambda rule=rule: rule(stack)), rows.sum(0) * rule.part)
            assert CTMA(rule)(Stack(rows, f=1)).shape == (500,)
    assert torch.equal(Squared().distances(stack), stack.squared_distances_to(TrimmedMean()(Stack(rows**2, f=1))))


def test_one_rule_does_not_mislead_another() -> None:
    class Scaled(TrimmedMean):
        def __init__(self, factor: float) -> None:
            object.__setattr__(self, "factor", factor)

        def statistic(self, stack: Stack) -> Callable[..., Tensor]:
            inner = super().statistic(stack)
            return lambda *given, **more: inner(*given, **more) * self.factor  # type: ignore[attr-defined]

    paths.choose(True)
    rows = torch.randn(9, 500)
    expected = TrimmedMean()(Stack(rows, f=1))
    stack = Stack(rows, f=1)
    assert Scaled(1.0) == Scaled(2.0)
    Scaled(1.0).admit(stack)
    assert torch.equal(Scaled(2.0)(stack), 2 * expected)
    first = TrimmedMean()(stack)
    first.zero_()
    assert torch.equal(TrimmedMean()(stack), expected)
    CTMA(CoordinateMedian())(stack).zero_()
    CoordinateMedian()(stack).zero_()
    assert torch.equal(CTMA(CoordinateMedian())(stack), CTMA(CoordinateMedian())(Stack(rows, f=1)))
    assert torch.equal(CTMA(MeanAroundMedian())(stack), CTMA(MeanAroundMedian())(Stack(rows, f=1)))


def test_no_median_is_computed_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = NNM()(Stack(torch.randn(9, 100), f=1))
    monkeypatch.setattr("lightning_byz.rule.coordinate_median", None)
    assert Krum()(mixed).shape == (100,)


def test_negative_views() -> None:
    rows = torch.randn(5, 300)
    view = torch._neg_view(-rows)
    assert torch.equal(on(True, lambda: CTMA(TrimmedMean())(Stack(view, f=1))), CTMA(TrimmedMean())(Stack(rows, f=1)))


def test_what_compiled_kernels_do_not_take_goes_to_torchs() -> None:
    paths.choose(True)
    assert paths.compiled(torch.ones(2, 3)) is not None
    for given in (torch.ones(2, 0), torch.ones(2, 3, device="meta"), torch.ones(2, 3, dtype=torch.float8_e5m2)):
        assert paths.compiled(given) is None
    assert paths.compiled(torch.ones(2, 3), 257) is None
    assert kernels.coordinate_median(torch.ones(2, 0), [1.0, 1.0]).shape == (0,)


# ---- first uses


def process(code: str, *, home: Path | str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new process that knows nothing of this one's stores."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "LIGHTNING_BYZ_KERNELS")}
    told = {**kept, "HOME": str(home), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=told,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home if Path(home).is_dir() else "/",
    )


USE = """
import torch
from lightning_byz import kernels
from lightning_byz.kernels import paths
rows = torch.arange(150_000.0).view(3, 50_000)
print(kernels.coordinate_median(rows, [1.0] * 3)[:2].tolist(), paths.described(0))
"""
STORE = (
    USE
    + """
from lightning_byz.kernels.compiled import jit, ranks
print(jit.store(), sum(ranks.rank_average._compiled.stats.cache_misses.values()))
"""
)
ANSWER = "[50000.0, 50001.0] compiled kernels"


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the package beside which nothing can be kept: even for the superuser, a file is no folder."""
    copy = tmp_path / "installed"
    subprocess.run(
        ["cp", "-r", str(ROOT / "lightning_byz"), str(copy / "lightning_byz")], check=True
    ) if copy.mkdir() is None else None
    kept = copy / "lightning_byz" / "kernels" / "compiled" / "__pycache__"
    subprocess.run(["rm", "-rf", str(kept)], check=True)
    kept.write_text("")
    return copy


def test_nothing_can_be_kept_beside_the_package(installation: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for misses in (1, 0):
        done = process(STORE, home=home, root=installation)
        assert done.stdout.splitlines()[0] == ANSWER, done.stderr
        store, missed = done.stdout.splitlines()[1].rsplit(" ", 1)
        assert Path(store).parent == home / ".cache" / "lightning_byz"
        assert int(missed) == misses


def test_nothing_can_be_kept_anywhere(installation: Path) -> None:
    done = process(STORE, home="/dev/null", root=installation)
    assert done.stdout.splitlines() == [ANSWER, "None 1"], done.stderr
    assert not done.stderr


def test_the_store_goes_away(tmp_path: Path) -> None:
    code = "import shutil\nfrom lightning_byz.kernels.compiled import jit\nshutil.rmtree(jit.store())\n" + USE
    done = process(code, home=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert done.stdout.splitlines() == [ANSWER], done.stderr


def test_what_is_kept_is_damaged(tmp_path: Path) -> None:
    for name in ("*.nbi", "*.nbc"):
        process(STORE, home=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
        for kept in (tmp_path / "numba").rglob(name):
            kept.write_bytes(kept.read_bytes()[:20])
        done = process(STORE, home=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
        assert done.stdout.splitlines()[0] == ANSWER, done.stderr
        assert not list((tmp_path / "numba").rglob(name)), "what is damaged is not kept"


def test_numba_is_told_not_to_compile(tmp_path: Path) -> None:
    done = process(USE, home=tmp_path, NUMBA_DISABLE_JIT="1")
    assert done.stdout.splitlines() == ["[50000.0, 50001.0] kernels of torch"]
    assert "NUMBA_DISABLE_JIT is set" in done.stderr


def test_after_the_last_thread_of_the_pool(tmp_path: Path) -> None:
    code = """
import atexit
def late():
    print(kernels.trimmed_mean(rows, [1.0] * 3, 1.0)[:2].tolist())
""" + USE.replace("print(", "atexit.register(late)\nprint(")
    done = process(code, home=tmp_path)
    assert done.stdout.splitlines() == [ANSWER, "[50000.0, 50001.0]"], done.stderr


def test_eight_processes_start_at_once_and_one_compiles(tmp_path: Path) -> None:
    told = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", STORE], env=told, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    answers = [rank.communicate(timeout=150)[0].splitlines() for rank in ranks]
    assert all(answer[0] == ANSWER for answer in answers)
    assert sum(int(answer[1].rsplit(" ", 1)[1]) for answer in answers) == 1


def test_a_process_forked_after_the_first_use(tmp_path: Path) -> None:
    code = (
        USE
        + """
import os, signal
halves = rows.bfloat16()  # torch's own operations on several threads hang in a forked process
child = os.fork()
if not child:
    signal.alarm(60)
    assert kernels.coordinate_median(rows, [1.0] * 3)[1] == 50_001
    assert kernels.trimmed_mean(rows, [1.0, 1.0, 2.0], 1.0)[0] == 75_000
    assert kernels.coordinate_median(halves, [1.0] * 3)[0] == 49_920
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""
    )
    done = process(code, home=tmp_path)
    assert done.stdout.splitlines()[-1] == "7 2", done.stderr


def test_without_numba_torchs_kernels_run(tmp_path: Path) -> None:
    missing = "import sys\nsys.modules['numba'] = None\n"
    done = process(missing + USE + "print(paths.described(10**7))", home=tmp_path)
    assert done.stdout.splitlines() == [
        "[50000.0, 50001.0] kernels of torch",
        "kernels of torch, slow for 10,000,000 numbers a step: pip install 'lightning-byz[fast]'",
    ]
    assert not done.stderr
    done = process(missing + USE, home=tmp_path, LIGHTNING_BYZ_KERNELS="compiled")
    assert (
        "ModuleNotFoundError: LIGHTNING_BYZ_KERNELS=compiled needs numba: pip install 'lightning-byz[fast]'"
        in done.stderr
    )


def test_a_numba_that_does_not_know_this_numpy_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    done = process(USE, home=tmp_path, root=f"{tmp_path}{os.pathsep}{ROOT}")  # pyright: ignore[reportArgumentType]
    assert done.stdout.splitlines() == ["[50000.0, 50001.0] kernels of torch"]
    assert done.stderr.count("Numba needs NumPy 1.0 or less") == 1


def test_a_path_is_chosen_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = USE + "import sys\nprint('numba' in sys.modules)"
    done = process(code, home=tmp_path, LIGHTNING_BYZ_KERNELS="torch")
    assert done.stdout.splitlines() == ["[50000.0, 50001.0] kernels of torch", "False"]
    monkeypatch.setenv("LIGHTNING_BYZ_KERNELS", "fast")
    with pytest.raises(ValueError, match='must be "torch" or "compiled", or not be set, not \'fast\''):
        paths.available()
    monkeypatch.setenv("LIGHTNING_BYZ_KERNELS", "torch")
    with pytest.raises(ValueError, match=r"no compiled kernels in this process: pip install 'lightning-byz\[fast\]'"):
        paths.choose(True)


def agreement(lacking: int) -> tuple[bool, list[str]]:
    """What a rank does where another one has no compiled kernels."""
    import warnings

    import torch.distributed as dist

    from lightning_byz.exchange import AllToAll
    from lightning_byz.rounds.start_up import agree_on_kernels

    dist.init_process_group("gloo")
    paths.choose(dist.get_rank() != lacking)
    paths.share(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agree_on_kernels(AllToAll(), torch.device("cpu"))
    dist.destroy_process_group()
    return paths.chosen(), [str(warning.message) for warning in caught]


def test_ranks_take_one_path(ranks) -> None:
    assert ranks(3).run(agreement, 5) == [(True, [])] * 3
    sentence = "1 rank has no compiled kernels (pip install 'lightning-byz[fast]'), so that none uses them"
    assert ranks(3).run(agreement, 1) == [(False, [sentence]), (False, []), (False, [sentence])]
