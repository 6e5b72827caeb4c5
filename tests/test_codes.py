"""Codes: exact recovery from every choice of liars, what is refused, what is not, and slices that decode alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import pytest
import torch
from torch import Tensor

from lightning_byz.codes import Code, Cyclic, Interleaved, Repetition, Solon, location
from lightning_byz.codes.generators import circle, cyclic, middle, roots_of_unity
from lightning_byz.errors import TooManyLiars
from lightning_byz.exchange.pairwise import slice_bounds
from lightning_byz.random import generator
from lightning_byz.stack import Slice, Stack
from lightning_byz.testing.cutting import cuts_of, on_slices

SMALL = [
    (Solon(1, 1), 3),
    (Solon(1, 2), 4),
    (Solon(1, 4), 6),
    (Solon(2, 2), 6),
    (Cyclic(1), 3),
    (Cyclic(1), 4),
    (Cyclic(2), 6),
    (Repetition(1), 3),
    (Repetition(2), 5),
]
LARGE = [
    (Solon(2, 4), 8),
    (Solon(3, 6), 12),
    (Solon(1, 10), 12),
    (Solon(5, 5), 15),
    (Solon(4, 8), 16),
    (Solon(2, 12), 16),
    (Solon(1, 2), 16),
    (Cyclic(2), 11),
    (Cyclic(4), 16),
    (Cyclic(7), 16),
    (Repetition(3), 14),
]
EXACT = {torch.float64: 2e-14, torch.float32: 3e-6}


@dataclass
class Run:
    """The honest rows of one step, and what is to come out."""

    code: Code
    workers: int
    total: int = 301
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        self.parts = self.code.parts(self.workers)
        shape = max(chain.from_iterable(self.parts)) + 1, self.total
        self.gradients = torch.randn(shape, generator=generator(self.seed), dtype=torch.float64).pow(3).to(self.dtype)
        self.where = self.code.coordinates(self.total)
        self.rows = torch.stack([self.encoded(worker) for worker in range(self.workers)])
        self.mean = self.gradients.double().mean(0)

    def encoded(self, worker: int) -> Tensor:
        own = [self.gradients[part] for part in self.parts[worker]]
        return self.code.encode(worker, own, self.where, workers=self.workers)

    def found(self, rows: Tensor, key: int = 0) -> list[int]:
        drawn = self.code.project(rows, self.where, generator=generator(self.seed, "projection", key))
        return self.code.locate(drawn, dtype=self.dtype)

    def error(self, rows: Tensor, liars: Sequence[int]) -> float:
        out = self.code.decode(rows, liars, self.where)
        assert out.dtype == self.dtype
        return float((out.double() - self.mean).norm() / self.mean.norm())


def reverse(row: Tensor, place: int, count: int) -> Tensor:
    return -100 * row


def constant(row: Tensor, place: int, count: int) -> Tensor:
    return torch.full_like(row, -100)


def tiny(row: Tensor, place: int, count: int, size: float = 2e-3) -> Tensor:
    noise = torch.randn(len(row), generator=generator(place), dtype=torch.float64)
    return row + (noise * (size * row.double().norm() / noise.norm())).to(row.dtype)


def shift(row: Tensor, place: int, count: int) -> Tensor:
    return row + row.abs().mean() * torch.linspace(-1, 2, len(row), dtype=row.dtype)


def non_finite(row: Tensor, place: int, count: int) -> Tensor:
    return torch.where(torch.arange(len(row)) == len(row) // 2, [math.nan, math.inf, -math.inf][place % 3], row)


def huge(row: Tensor, place: int, count: int) -> Tensor:
    return torch.where(torch.arange(len(row)) % 7 == 0, 3e38, row)


def mixed(row: Tensor, place: int, count: int) -> Tensor:
    """From a millionth of the row to a million times the row."""
    return tiny(row, place, count, 10.0 ** (12 * place / max(count - 1, 1) - 6))


ATTACKS = [reverse, constant, tiny, shift, non_finite, huge, mixed]


def lied(rows: Tensor, liars: Sequence[int], attack) -> Tensor:
    rows = rows.clone()
    for place, liar in enumerate(liars):
        rows[liar] = attack(rows[liar], place, len(liars))
    return rows


def check(run: Run, liars: tuple[int, ...], attack) -> None:
    rows = lied(run.rows, liars, attack)
    found = run.found(rows)
    if attack is mixed and run.dtype == torch.float32:  # a millionth is below the tolerance, and harmless
        assert set(found) <= set(liars)
        assert set(found) >= set(liars[1:])
    else:
        assert found == sorted(liars)
    assert run.error(rows, found) <= EXACT[run.dtype]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize(("code", "workers"), SMALL, ids=str)
def test_every_choice_of_liars_is_found_and_harmless(code: Code, workers: int, attack, dtype: torch.dtype) -> None:
    run = Run(code, workers, dtype=dtype)
    for count in range(code.s + 1):
        for liars in combinations(range(workers), count):
            check(run, liars, attack)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize(("code", "workers"), LARGE, ids=str)
def test_samples_of_larger_groups(code: Code, workers: int, attack, dtype: torch.dtype) -> None:
    """Neighbours too, which leave the largest gap."""
    run = Run(code, workers, total=1003, dtype=dtype)
    for seed in range(6):
        draws, liars = generator(seed, "liars"), []
        for group in code.groups(workers):
            own = torch.randperm(len(group), generator=draws)[: code.s]
            own = own if seed % 2 else (own[0] + torch.arange(code.s)) % len(group)
            liars += [group[row] for row in own.sort().values.tolist()]
        check(run, tuple(liars), attack) if attack is not mixed or len(code.groups(workers)) == 1 else None


@pytest.mark.parametrize(("code", "workers"), [(Solon(2, 4), 8), (Solon(4, 8), 16), (Cyclic(4), 16)], ids=str)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_smaller_lies_move_the_mean_by_their_own_size(code: Code, workers: int, dtype: torch.dtype) -> None:
    run = Run(code, workers, dtype=dtype)
    for exponent in range(3, 16):
        for first in range(workers):
            liars = [(first + step) % workers for step in range(code.s)]
            rows = lied(run.rows, liars, lambda *where, size=10.0**-exponent: tiny(*where, size=size))
            assert run.error(rows, run.found(rows)) <= EXACT[dtype] + 20 * 10.0**-exponent


@pytest.mark.parametrize(("code", "workers"), [*SMALL, *LARGE], ids=str)
def test_the_result_is_not_one_of_the_draw(code: Code, workers: int) -> None:
    """All rows that fit are kept, so that equal rows give equal bits whatever is drawn; nobody honest is named."""
    run = Run(code, workers)
    rows = lied(run.rows, [workers - 1], reverse)
    assert {tuple(run.found(rows, key)) for key in range(20)} == {(workers - 1,)}
    assert all(run.found(run.rows, key) == [] for key in range(20))


@pytest.mark.parametrize(("code", "workers"), [(Solon(4, 8), 16), (Solon(4, 16), 24), (Cyclic(4), 16)], ids=str)
def test_rows_of_unlike_machines_are_no_lies(code: Code, workers: int) -> None:
    """A millionth apart, as other kernels make them."""
    run = Run(code, workers)
    for key in range(20):
        noise = torch.randn(run.rows.shape, generator=generator(key))
        rows = run.rows + 1e-6 * noise * run.rows.square().mean(1, keepdim=True).sqrt()
        assert run.found(lied(rows, [key % workers], reverse)) == [key % workers]


@pytest.mark.parametrize(("code", "workers"), [(Solon(4, 8), 16), (Solon(2, 12), 16), (Cyclic(4), 16)], ids=str)
def test_a_thousandth_of_the_row_is_found_by_every_draw(code: Code, workers: int) -> None:
    run = Run(code, workers)
    for key in range(60):
        liars = sorted((key + step) % workers for step in range(code.s))
        rows = lied(run.rows, liars, lambda *where: tiny(*where, size=1e-3))
        assert run.found(rows, key) == liars


def sizes_apart(run: Run) -> tuple[Tensor, list[int]]:
    """Rows with lies from a hundred-thousandfold down to a ten-billionth, and who sent them."""
    liars = [*range(1, run.code.s + 1)]
    exponents = torch.linspace(5, -10, len(liars)).tolist()
    rows = run.rows.clone()
    for liar, exponent in zip(liars, exponents, strict=True):
        rows[liar] = tiny(rows[liar], liar, 1, 10.0**exponent)
    return rows, liars


def test_the_small_among_the_large_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations in which large lies leave no digits for small ones: the surest liar is erased, and the rest looked at anew."""
    monkeypatch.setattr(location, "_TRIED", 0)
    for code in (Cyclic(7), Cyclic(4), Solon(4, 8)):
        for seed in range(5):
            run = Run(code, 16, dtype=torch.float64, seed=seed)
            rows, liars = sizes_apart(run)
            assert run.found(rows) == liars


def test_all_sets_are_tried_where_the_locator_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = location._located
    monkeypatch.setattr(location, "_located", lambda *arguments: right(*arguments)[::-1])
    run = Run(Solon(2, 4), 8)
    for liars in combinations(range(8), 2):
        assert run.found(lied(run.rows, liars, reverse)) == [*liars]


@pytest.mark.parametrize(("code", "workers"), [(Solon(2, 4), 8), (Solon(1, 2), 4), (Cyclic(2), 8)], ids=str)
def test_a_projection_that_is_known_is_no_check(code: Code, workers: int) -> None:
    """Lies orthogonal to a fixed draw are unseen, however large; a draw that is made afterwards sees them."""
    run = Run(code, workers, dtype=torch.float64)
    known = code.project(
        torch.eye(run.where.coded, dtype=torch.float64), run.where, generator=generator(0, "projection", 0)
    )
    halves = (
        [torch.cat([known.real, -known.imag], 1), torch.cat([known.imag, known.real], 1)]
        if known.is_complex()
        else [known]
    )
    basis = torch.linalg.qr(torch.cat(halves, 1)).Q
    lie = 100 * torch.randn(run.where.coded, generator=generator(3), dtype=torch.float64)
    rows = run.rows.clone()
    rows[1] += lie - basis @ (basis.T @ lie)
    assert run.found(rows, key=0) == []
    assert run.error(rows, []) > 1
    assert run.found(rows, key=1) == [1]


@pytest.mark.parametrize(("s", "compression"), [(1, 1), (1, 2), (2, 2), (2, 4), (3, 3)])
def test_one_worker_fewer_is_not_enough(s: int, compression: int) -> None:
    """With 2 s + r_c - 1 rows there are two words so near each other that s lies make a row of rows that is as near to both."""
    rows = 2 * s + compression - 1
    code = circle(rows, compression).generator
    vanishing = (
        torch.linalg.svd(code[: compression - 1], full_matrices=True).Vh[-1] if compression > 1 else torch.ones(1)
    )
    difference = code @ vanishing.double()
    differing = (difference.abs() > 1e-9).nonzero().flatten()
    assert len(differing) == 2 * s
    one, other = code @ torch.ones(compression, dtype=torch.float64), code @ (1 + vanishing.double())
    received = one.clone()
    received[differing[:s]] = other[differing[:s]]
    for word in (one, other):
        assert int(((received - word).abs() > 1e-9).sum()) == s
    with pytest.raises(ValueError, match="cannot be divided"):
        Solon(s, compression).check(rows)


@pytest.mark.parametrize("attack", [reverse, constant], ids=lambda attack: attack.__name__)
def test_one_liar_too_many_is_refused_where_rows_are_shorter(attack) -> None:
    for s, compression in ((1, 2), (1, 4), (2, 2), (2, 4), (3, 6)):
        run = Run(Solon(s, compression), 2 * s + compression)
        for first in range(run.workers):
            liars = [(first + step) % run.workers for step in range(s + 1)]
            with pytest.raises(
                TooManyLiars, match=f"fit no message, whichever {s} of them are left out: more than {s}"
            ):
                run.found(lied(run.rows, liars, attack))


@pytest.mark.parametrize("attack", [reverse, constant], ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("code", [Solon(1, 1), Solon(2, 1), Repetition(1), Repetition(2)], ids=str)
def test_one_liar_too_many_is_a_majority_where_they_are_not(code: Code, attack) -> None:
    run = Run(code, 2 * code.s + 1)
    rows = lied(run.rows, range(code.s + 1), attack)
    assert run.found(rows) == [*range(code.s + 1, run.workers)]
    assert run.error(rows, run.found(rows)) > 1


@pytest.mark.parametrize(
    ("code", "workers"), [(Solon(1, 2), 4), (Solon(2, 4), 8), (Solon(3, 6), 12), (Cyclic(2), 8)], ids=str
)
def test_a_coalition_that_knows_the_code_is_believed(code: Code, workers: int) -> None:
    """The limit of the method: s + 1 liars send the word that agrees with the honest one in all but 2 s + 1 places, and s honest are named."""
    run, space = Run(code, workers), code.polynomials(workers)  # type: ignore[attr-defined]
    dimension, liars = space.dimension, [*range(code.s + 1)]
    agreeing = range(workers - dimension + 1, workers)
    combination = torch.linalg.svd(space.generator[agreeing], full_matrices=True).Vh[-1].conj()
    word = space.generator @ combination
    lie = 50 * torch.randn(run.where.coded, generator=generator(5))
    rows = run.rows.clone()
    for liar in liars:
        for piece, own in zip(run.where.cut_row(lie), run.where.cut_row(rows[liar]), strict=True):
            if word.is_complex():
                turned = torch.complex(piece[:, 0], piece[:, 1]) * complex(word[liar])
                own += torch.stack([turned.real, turned.imag], 1)
            else:
                own += piece * float(word[liar])
    assert run.found(rows) == [*range(code.s + 1, 2 * code.s + 1)]
    assert run.error(rows, run.found(rows)) > 1


@pytest.mark.parametrize("total", [1, 63, 1000, 70001])
@pytest.mark.parametrize(
    ("code", "workers"), [(Solon(1, 3), 5), (Solon(2, 4), 16), (Cyclic(1), 5), (Repetition(1), 6)], ids=str
)
def test_slices_decode_to_the_bits_of_the_whole(code: Code, workers: int, total: int) -> None:
    run = Run(code, workers, total=total)
    rows = lied(run.rows, [2], shift)
    projections = code.project(rows, run.where, generator=generator(1))
    liars = code.locate(projections)
    mean = code.decode(rows, liars, run.where)
    for key in range(3):
        ends = cuts_of(run.where.coded, 4, generator(key))

        def part(stack: Stack) -> tuple[Tensor, Tensor, tuple[int, int]]:
            found = code.project(stack.vectors, run.where, stack.slice, generator=generator(1))
            own = run.where.decoded(stack.slice)  # type: ignore[arg-type]
            return found, code.decode(stack.vectors, liars, run.where, stack.slice), (own.start, own.stop)

        for found, own, (start, stop) in on_slices(part, Stack(rows), ends):
            assert torch.equal(found, projections)
            assert torch.equal(own, mean[start:stop])


def test_rows_by_hand() -> None:
    """Solon's four nodes are a quarter of a circle apart, and their frequency is one half."""
    code, gradient = Solon(1, 2), torch.tensor([1.0, 2.0])
    rows = torch.cat([code.encode(worker, [gradient], code.coordinates(2), workers=4) for worker in range(4)])
    torch.testing.assert_close(rows, torch.tensor([0.5**0.5, 1.5, 2**0.5, 0.5]))
    code = Solon(1, 1)
    rows = torch.stack([code.encode(worker, [gradient], code.coordinates(2), workers=3) for worker in range(3)])
    torch.testing.assert_close(rows, gradient.expand(3, 2) / 3**0.5)
    code, gradient = Solon(1, 3), torch.tensor([1.0, 2.0, 3.0])
    row = code.encode(1, [gradient], code.coordinates(3), workers=5)
    angle, large = math.tau / 5, (2 / 5) ** 0.5
    torch.testing.assert_close(row, torch.tensor([5**-0.5 + large * (2 * math.cos(angle) + 3 * math.sin(angle))]))


def test_a_layout_by_hand() -> None:
    where, vector = Interleaved(10, pieces=2, width=2), torch.arange(10.0)
    assert (where.coded, where.blocks().bounds) == (5, ((0, 2), (2, 4), (4, 5)))
    assert [piece.tolist() for piece in where.cut(vector)] == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]], [[[8], [9]]]]
    complex_rows = Interleaved(7, pieces=2, carried=2, width=4)
    assert complex_rows.coded == 8
    assert [piece.tolist() for piece in complex_rows.cut(vector[:7])] == [[[[0, 1], [2, 3]]], [[[4, 5], [6, 0]]]]


@pytest.mark.parametrize("total", [1, 5, 64, 255, 16384 * 256, 16384 * 256 + 1, 10**7 + 3])
@pytest.mark.parametrize(("pieces", "carried"), [(1, 1), (3, 1), (8, 1), (2, 2)])
def test_layouts_are_as_short_as_can_be_and_cut_alike(total: int, pieces: int, carried: int) -> None:
    """No more than the padding of one number per piece; and an exchange for gradients has the slices of one for rows, decoded."""
    where = Interleaved(total, pieces, carried)
    assert 0 <= where.coded * pieces // carried - total < pieces
    wide = where.width // carried * pieces
    for ranks in (1, 2, 3, 7):
        rows, own = slice_bounds(where.coded, ranks, where.width), slice_bounds(total, ranks, wide)
        for (start, stop), ends in zip(rows, own, strict=True):
            decoded = where.decoded(Slice(start, stop, where.coded, lambda partials: partials, lambda counts: counts))
            assert (decoded.start, decoded.stop, decoded.width) == (*ends, wide)


@pytest.mark.parametrize(("workers", "s"), [(3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (16, 3)])
def test_the_cyclic_code_is_the_one_of_its_definition(workers: int, s: int) -> None:
    """Zero where a part is not held; a word in each column; and one combination of the rows, the same for all parts, is their sum."""
    made, space = cyclic(workers, 2 * s + 1), roots_of_unity(workers, workers - 2 * s)
    for worker, held in enumerate(Cyclic(s).parts(workers)):
        assert len(set(held)) == 2 * s + 1
        assert [part for part in range(workers) if made[worker, part] != 0] == sorted(held)
    spectrum = space.values.mH @ made
    assert float(spectrum[space.dimension :].abs().max()) < 1e-12 * float(made.abs().max())
    torch.testing.assert_close(spectrum[middle(space.dimension)], torch.ones(workers, dtype=torch.complex128))
    first = made / spectrum[0]  # as published: the sum in the first coefficient
    assert float(made.abs().max()) <= float(first.abs().max()) * (1 + 1e-12)


@pytest.mark.parametrize("rows", [3, 4, 8, 13, 16, 24])
def test_solons_words_are_those_of_a_fourier_code(rows: int) -> None:
    for dimension in range(1, rows - 1):
        space = circle(rows, dimension)
        torch.testing.assert_close(space.values.mH @ space.values, torch.eye(rows, dtype=torch.complex128))
        torch.testing.assert_close(space.generator.T @ space.generator, torch.eye(dimension, dtype=torch.float64))
        assert float((space.values[:, dimension:].mH @ space.generator.to(torch.complex128)).abs().max()) < 1e-12


def test_rows_of_the_extremes_are_erased() -> None:
    """As many as s; one more is refused, and which were not finite is told."""
    run = Run(Solon(2, 4), 16, dtype=torch.float64)
    rows = run.rows.clone()
    rows[1], rows[9, 0], rows[15] = 1e308, math.nan, 1e300
    assert run.found(rows) == [1, 9, 15]
    assert run.error(rows, [1, 9, 15]) < 1e-14
    rows[10], rows[11] = math.inf, math.nan
    with pytest.raises(
        TooManyLiars, match=r"workers 8 to 15 fit .*left out \(not finite: those of 9, 10, 11\)"
    ) as raised:
        run.found(rows)
    assert (raised.value.workers, raised.value.broken, raised.value.liars) == (tuple(range(8, 16)), (9, 10, 11), (1,))


def test_nothing_fits_nothing() -> None:
    """Zero gradients decode to zero, and who sends something else is named."""
    code, rows = Solon(2, 2), torch.zeros(6, 50)
    rows[4] = 1e-30
    where = code.coordinates(100)
    assert code.locate(code.project(rows, where, generator=generator(0))) == [4]
    assert not code.decode(rows, [4], where).any()


def test_repetition_compares_bits() -> None:
    rows = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [math.nan, 1.0], [math.nan, 1.0], [0.0, 1.0]])
    code, where = Repetition(1), Repetition(1).coordinates(2)
    assert code.locate(code.project(rows[:3], where, generator=generator(0))) == [1]
    with pytest.raises(TooManyLiars, match=r"workers 3 to 5 fit .*not finite: those of 3, 4") as raised:
        code.locate(code.project(rows, where, generator=generator(0)))
    assert raised.value.liars == (1,)
    with pytest.raises(TooManyLiars, match="workers 0 to 2"):
        code.locate(code.project(torch.arange(6.0).view(3, 2), where, generator=generator(0)))


@pytest.mark.parametrize(("code", "workers"), [(Solon(1, 2), 4), (Cyclic(1), 4), (Repetition(1), 3)], ids=str)
def test_nothing_but_results_is_written(code: Code, workers: int) -> None:
    run = Run(code, workers)
    gradients, rows, before = run.gradients.clone(), run.rows.clone(), torch.get_rng_state()
    place, mean = torch.full_like(rows[0], math.nan), torch.full((run.total,), math.nan)
    for worker in range(workers):
        own = [run.gradients[part] for part in run.parts[worker]]
        assert code.encode(worker, own, run.where, workers=workers, out=place) is place
        assert torch.equal(place, rows[worker])
    liars = run.found(run.rows)
    assert code.decode(run.rows, liars, run.where, out=mean) is mean
    assert torch.equal(mean, code.decode(run.rows, liars, run.where))
    assert torch.equal(run.gradients, gradients)
    assert torch.equal(run.rows, rows)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_narrow_gradients_travel_as_float32(dtype: torch.dtype) -> None:
    gradients = torch.randn(1, 100, generator=generator(0)).to(dtype)
    for code, workers in ((Solon(1, 2), 4), (Repetition(1), 3)):
        where = code.coordinates(100)
        rows = torch.stack([code.encode(worker, [gradients[0]], where, workers=workers) for worker in range(workers)])
        assert rows.dtype == code.dtype(dtype) == (torch.float32 if isinstance(code, Solon) else dtype)
        rows[0] *= 2
        liars = code.locate(code.project(rows, where, generator=generator(0)), dtype=dtype)
        assert liars == [0]
        torch.testing.assert_close(code.decode(rows, liars, where).to(dtype), gradients[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Solon(0, 2),
            r"Solon\(s=0\): s, how many liars of a group are found, must be a whole number from 1 on",
        ),
        (lambda: Solon(1, 0), r"Solon\(compression=0\): compression, by how much .* whole number from 1 on"),
        (lambda: Cyclic(-1), r"Cyclic\(s=-1\)"),
        (lambda: Repetition(True), r"Repetition\(s=True\)"),
        (lambda: Solon(1, 2).check(10), r"groups of 2 \* s \+ compression = 4 workers, .* 10 workers .*: take 8 or 12"),
        (lambda: Solon(2, 4).parts(3), r"take 8 workers"),
        (lambda: Repetition(1).check(0), r"groups of 2 \* s \+ 1 = 3 workers"),
        (lambda: Cyclic(2).check(4), r"at least 2 \* s \+ 1 = 5 workers, not 4"),
        (lambda: Interleaved(10, 2, 2, width=3), r"multiple of 2"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_refusals_of_rows() -> None:
    """Of a slice of something else, and of more liars than can be left out."""
    run = Run(Solon(1, 2), 4)
    with pytest.raises(TooManyLiars, match="2 of the workers 0 to 3 are named as liars; at most 1"):
        run.code.decode(run.rows, [0, 1], run.where)
    with pytest.raises(ValueError, match="open the exchange for 151, with width=64"):
        on_slices(
            lambda part: run.code.decode(part.vectors, [], run.where, part.slice), Stack(torch.zeros(4, 301)), [0, 301]
        )
