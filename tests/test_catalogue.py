"""The rules of the catalogue against their definitions, written independently; published values; parameters."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from lightning_byz.aggregators import (
    CAF,
    CTMA,
    MDA,
    SMEA,
    Aggregator,
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    DnC,
    Krum,
    MeanAroundMedian,
    MoNNA,
    MultiKrum,
    SignMajority,
)
from lightning_byz.errors import ToleranceError
from lightning_byz.preaggregators import ARC, Bucketing, Clipping, PreAggregator
from lightning_byz.rule import check_whole
from lightning_byz.stack import Stack
from tests import reference

WEIGHTED = {
    "MultiKrum": (MultiKrum(), reference.multi_krum),
    "MeanAroundMedian": (MeanAroundMedian(), reference.mean_around_median),
    "CenteredClipping": (CenteredClipping(), reference.centered_clipping),
    "MoNNA": (MoNNA(), reference.monna),
    "CAF": (CAF(), reference.caf),
    "DnC": (DnC(), reference.dnc),
    "DnC dropping more": (
        DnC(iterations=2, factor=0.6),
        lambda rows, weights, f: reference.dnc(rows, weights, 0.6 * f),
    ),
    "SignMajority": (SignMajority(), reference.sign_majority),
}
UNIT = {"Bulyan": (Bulyan(), reference.bulyan), "SMEA": (SMEA(), reference.smea)}
PRE = {"Clipping": (Clipping(), reference.clipping), "ARC": (ARC(), reference.arc)}
WEIGHTS = [None, [0.1] * 9, [1, 2, 1, 3, 1, 2, 0, 1, 1], [0.1, 1 / 7, 1e-3, 1, 0.5, 0.25, 0.1, 0, 1 / 7]]
PARTS = [0.0, 0.1, 0.25, 1 / 3, 0.45]


def example(seed: int, n: int = 9) -> Tensor:
    rows = torch.randn(n, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[:2] += 30
    return rows


def applied(rule: Aggregator, stack: Stack) -> Tensor:
    return rule(stack, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", WEIGHTED)
def test_rules_agree_with_their_definitions(name: str, weights: list[float] | None) -> None:
    rule, slow = WEIGHTED[name]
    for seed, part in enumerate(PARTS):
        rows, mass = example(seed), weights or [1.0] * 9
        f = float(reference.exact(sum(mass) * part))
        expected = torch.tensor(slow(rows.tolist(), mass, f), dtype=torch.float64)
        for dtype in (torch.float64, torch.float32):
            torch.testing.assert_close(
                applied(rule, Stack(rows.to(dtype), weights, f)).double(), expected, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", [*WEIGHTED, *UNIT])
def test_whole_numbers_of_workers_agree_closely(name: str) -> None:
    rule, slow = {**WEIGHTED, **UNIT}[name]
    for n in (1, 2, 3, 6, 9, 11):
        for f in range((n + 1) // 2):
            if not rule.tolerates([1.0] * n, f):
                continue
            rows = example(n + f, n)
            expected = torch.tensor(slow(rows.tolist(), [1.0] * n, f), dtype=torch.float64)
            torch.testing.assert_close(applied(rule, Stack(rows, f=f)), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(applied(rule, Stack(rows, [0.3] * n, 0.3 * f)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", PRE)
def test_preaggregators_agree_with_their_definitions(name: str, weights: list[float] | None) -> None:
    rule, slow = PRE[name]
    for seed, part in enumerate(PARTS):
        rows, mass = example(seed), torch.tensor(weights or [1.0] * 9, dtype=torch.float64)
        f = float(reference.exact(float(mass.sum()) * part))
        expected = torch.tensor(slow(rows.tolist(), mass.tolist(), f), dtype=torch.float64)
        torch.testing.assert_close(
            rule(Stack(rows, weights, f)).vectors[mass > 0], expected[mass > 0], rtol=1e-9, atol=1e-9
        )


def test_published_values() -> None:
    """Three equally spaced rows, f = 1; the ties go to the lower worker or the lower value."""
    stack = Stack(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), f=1)
    for rule in (MultiKrum(), MDA(), MoNNA(), MeanAroundMedian(), SMEA()):
        assert rule(stack).tolist() == [2.5, 3.5, 4.5]
    for rule in (CenteredClipping(radius=100.0, iterations=1), CAF()):
        torch.testing.assert_close(rule(stack), torch.tensor([4.0, 5, 6]))
    clipped = [
        [0.53452248, 1.06904497, 1.60356745],
        [0.91168461, 1.13960576, 1.36752692],
        [1.00514142, 1.14873305, 1.29232469],
    ]
    torch.testing.assert_close(Clipping(2.0)(stack).vectors, torch.tensor(clipped))
    shortened = [[1.0, 2, 3], [4, 5, 6], [4.41004009, 5.04004582, 5.67005155]]
    torch.testing.assert_close(ARC()(stack).vectors, torch.tensor(shortened))


def test_multi_krum_of_one_row_is_krum() -> None:
    for seed in range(20):
        for neighbors in ("weight", "paper"):
            stack = Stack(example(seed), f=2)
            assert torch.equal(MultiKrum(selected=1, neighbors=neighbors)(stack), Krum(neighbors=neighbors)(stack))
    with pytest.raises(ToleranceError, match=r"MultiKrum cannot tolerate f = 2 .* selected <= n - f"):
        MultiKrum(selected=8)(Stack(example(0), f=2))
    with pytest.raises(ToleranceError, match="MultiKrum takes equal weights only"):
        MultiKrum(selected=2)(Stack(example(0), range(1, 10), f=2))
    assert torch.equal(
        MultiKrum(selected=3)(Stack(example(0), [1e6] * 9, f=2e6)), MultiKrum(selected=3)(Stack(example(0), f=2))
    )


def test_bulyan_by_either_neighbours() -> None:
    """The two ways to score choose differently for some rows."""
    different = 0
    for seed in range(30):
        rows = torch.randn(11, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ours, published = Bulyan(neighbors="weight")(Stack(rows, f=2)), Bulyan()(Stack(rows, f=2))
        different += not torch.equal(ours, published)
    assert 0 < different < 30


def test_no_set_has_a_smaller_diameter() -> None:
    """Several sets may share the smallest diameter; the result is the mean of one of them, the same for every order of the rows."""
    for n in (1, 2, 3, 6, 9, 11):
        for f in range((n + 1) // 2):
            rows = example(n + f, n)
            result, means = (
                MDA()(Stack(rows, f=f)),
                torch.tensor(reference.mda(rows.tolist(), [1.0] * n, f), dtype=torch.float64),
            )
            assert float((means - result).abs().amax(1).min()) < 1e-9
            place = torch.randperm(n, generator=torch.Generator().manual_seed(n))
            torch.testing.assert_close(MDA()(Stack(rows[place], f=f)), result)


def test_no_set_has_a_smaller_diameter_on_a_lattice() -> None:
    """Many equal distances, for which searches take every turn they have."""
    for seed in range(250):
        draws = torch.Generator().manual_seed(seed)
        n, d = int(torch.randint(5, 11, (1,), generator=draws)), int(torch.randint(1, 4, (1,), generator=draws))
        rows, f = torch.randint(0, 5, (n, d), generator=draws).double(), (n - 1) // 2
        _, shares = MDA().explain(Stack(rows, f=f))
        assert shares is not None
        assert int((shares > 0).sum()) == n - f
        chosen = reference.diameter(rows[shares > 0].tolist())
        assert chosen == pytest.approx(
            min(reference.diameter(rows[list(some)].tolist()) for some in combinations(range(n), n - f))
        )


def test_the_smallest_diameter_is_found_among_many_rows() -> None:
    """Twelve of thirty rows lie within a ball, the others are far from each other and from it."""
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        near = torch.randn(16, 5, generator=draws, dtype=torch.float64) * 0.1
        far = torch.randn(14, 5, generator=draws, dtype=torch.float64) * 50
        place = torch.randperm(30, generator=draws)
        _, shares = MDA().explain(Stack(torch.cat([near, far])[place], f=14))
        assert shares is not None
        assert torch.equal(shares > 0, place < 16)


def test_a_centre_comes_back_after_a_bad_round() -> None:
    """The centre was thrown far away; step by step it returns, whatever a minority sends."""
    rule, centre = CenteredClipping(radius=5.0), torch.full((11,), 60.0, dtype=torch.float64)
    honest = example(4)[2:]
    rows = torch.cat([honest, torch.full((2, 11), 1e300, dtype=torch.float64).clamp(max=2.0**479)])
    before = math.inf
    for _ in range(60):
        centre = rule(Stack(rows, f=2, reference=centre))
        after = float((centre - honest.mean(0)).norm())
        assert after < max(before, 8.0)
        before = after
    assert after < 8.0


def test_a_broken_centre_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stack.reference holds numbers that are not finite"):
        CenteredClipping()(Stack(example(0), f=1, reference=torch.full((11,), math.nan).double()))


def test_buckets_are_means_of_disjoint_rows() -> None:
    rows = example(3, 8)
    stack = Bucketing(size=3)(Stack(rows, [1, 1, 0, 1, 1, 1, 1, 1], f=0.9), generator=torch.Generator().manual_seed(5))
    assert stack.f == 3.0
    mixing = stack.mixing
    assert mixing is not None
    torch.testing.assert_close(stack.vectors, mixing @ rows)
    assert not bool(mixing[2].any())
    assert not bool(mixing[:, 2].any())
    present = [0, 1, 3, 4, 5, 6, 7]
    torch.testing.assert_close(mixing[present].sum(1), torch.ones(7).double())
    assert sorted((mixing > 0).sum(1)[present].tolist()) == [1, 3, 3, 3, 3, 3, 3]
    assert torch.equal(mixing, mixing.T)
    other = Bucketing(size=3)(Stack(rows, f=1), generator=torch.Generator().manual_seed(6)).mixing
    assert other is not None
    assert sorted((other > 0).sum(1).tolist()) == [2, 2, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("rule", [DnC(), Bucketing()])
def test_what_draws_needs_a_generator(rule: Aggregator | PreAggregator) -> None:
    with pytest.raises(ValueError, match=f"{type(rule).__name__} draws at random and needs a generator"):
        rule(Stack(example(0), f=1))


def test_dnc_sees_what_it_draws() -> None:
    """Among 200 coordinates an attacker differs in half; ten drawn ones are enough to see it."""
    rows = torch.randn(9, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attacked = rows.clone()
    attacked[4, ::2] += 100
    kept = []
    for iterations in (1, 2, 3, 4):
        rule, draws = DnC(iterations=iterations, coordinates=10), torch.Generator()
        _, shares = rule.explain(Stack(attacked, f=1), generator=draws.manual_seed(1))
        assert shares is not None
        assert float(shares[4]) == 0.0
        _, shares = rule.explain(Stack(rows, f=1), generator=draws.manual_seed(1))
        assert shares is not None
        kept.append({row for row in range(9) if float(shares[row]) > 0})
    assert all(later <= earlier for earlier, later in pairwise(kept)), "what one iteration drops, more iterations drop"
    assert len(kept[0]) == 8
    assert len(kept[3]) < 7
    assert not DnC(iterations=5).tolerates([1.0] * 9, 2)


@pytest.mark.parametrize(
    ("rule", "n", "f", "message"),
    [
        (Bulyan(), 10, 2, r"Bulyan cannot tolerate f = 2 of the total weight W = 10; it needs n >= 4 f \+ 3"),
        (MDA(), 60, 25, "MDA cannot tolerate f = 25 of the total weight W = 60; it needs f < n / 2 and f <= 24"),
        (SMEA(), 40, 12, r"SMEA cannot tolerate f = 12 .* C\(n, f\) \(n - f\)\^2 <= 2\^25"),
        (MDA(), 5, 2.5, "f = 2.5 of the total weight W = 5"),
    ],
)
def test_limits_are_refused(rule: Aggregator, n: int, f: float, message: str) -> None:
    with pytest.raises(ToleranceError, match=message):
        rule(Stack(torch.randn(n, 2), f=f))


@pytest.mark.parametrize("rule", [Bulyan(), MDA(), SMEA()])
def test_parts_of_rows_are_refused(rule: Aggregator) -> None:
    with pytest.raises(ToleranceError, match="takes equal weights only"):
        rule(Stack(example(0), [1, 1, 1, 1, 2, 1, 1, 1, 1], f=1))
    assert CTMA(rule).unequal_weights is False
    assert CTMA(CoordinateMedian()).unequal_weights


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiKrum(selected=0), "selected must be a whole number of at least 1, not 0"),
        (lambda: CenteredClipping(radius=0.0), "radius must be finite and positive, not 0"),
        (lambda: CenteredClipping(iterations=0), "iterations must be a whole number of at least 1, not 0"),
        (lambda: MoNNA(pivot=-1), "pivot must be a whole number of at least 0, not -1"),
        (lambda: DnC(factor=math.inf), "factor must be finite and positive, not inf"),
        (lambda: DnC(iterations=0), "iterations must be a whole number of at least 1, not 0"),
        (lambda: Bucketing(size=0), "size must be a whole number of at least 1, not 0"),
        (lambda: check_whole("size", 1.5, least=1), "size must be a whole number of at least 1, not 1.5"),
        (lambda: MoNNA(pivot=9)(Stack(example(0), f=1)), "pivot=9 is no worker: the 9 workers are 0 to 8"),
        (lambda: Clipping(radius=math.nan), "radius must be finite and positive, not nan"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
