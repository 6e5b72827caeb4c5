"""Law 2 for rules: on slices of whole blocks, however cut, the same bits as on the whole."""

import pytest
import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.kernels import block_size
from lightning_byz.stack import Stack
from tests.contracts.cutting import cuts_of, on_slices
from tests.contracts.subjects import ATTACKS, RULES, label

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")
LENGTHS = [1, 64, 1000, 64 * 256 + 7, 33333]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def example(d: int, dtype: torch.dtype, *, broken: bool, weighted: bool) -> Stack:
    generator = torch.Generator().manual_seed(d)
    rows = torch.randn(7, d, generator=generator, dtype=torch.float64).mul_(3).add_(100).to(dtype)
    rows[0] *= 1e6
    if broken:
        rows[5, d - 1] = float("nan")
    return Stack(rows, [1, 0.5, 0.25, 1, 1, 0.5, 1] if weighted else None, 1 if weighted else 2)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_slices_give_the_bits_of_the_whole(rule: Aggregator) -> None:
    for seed, d in enumerate(LENGTHS):
        for place, dtype in enumerate(DTYPES):
            weighted = rule.unequal_weights and "paper" not in str(rule) and (seed + place) % 2 == 0
            stack = example(d, dtype, broken=place == 0, weighted=weighted)
            whole, shares = rule.explain(stack)
            for count in ((2, 12), (3, 5), (1, 4))[(seed + place) % 3]:
                pieces = on_slices(rule.explain, stack, cuts_of(d, count, seed + count))
                assert torch.equal(torch.cat([piece for piece, _ in pieces]), whole), (d, dtype, count)
                for _, own in pieces:
                    assert own is None if shares is None else torch.equal(own, shares)


@pytest.mark.parametrize("attack", ATTACKS, ids=label)
def test_attacks_give_the_bits_of_the_whole(attack: Attack) -> None:
    for seed, d in enumerate(LENGTHS):
        for dtype in DTYPES:
            stack = example(d, dtype, broken=False, weighted=True)

            def replaced(part: Stack) -> torch.Tensor:
                return attack.replace(part, [2, 6], generator=torch.Generator().manual_seed(1))

            whole = replaced(stack)
            for count in (1, 3, 12):
                pieces = torch.cat(on_slices(replaced, stack, cuts_of(d, count, seed + count)), dim=1)
                assert torch.equal(pieces.nan_to_num(), whole.nan_to_num())


def test_all_cuts_of_a_short_vector() -> None:
    """Every way to cut three blocks among two and three slices, with every rule."""
    d = 150
    stack = example(d, torch.float32, broken=False, weighted=False)
    size = block_size(d)
    ends = [min(block * size, d) for block in range(4)]
    for rule in RULES:
        whole = rule(stack)
        for first in ends:
            assert torch.equal(torch.cat(on_slices(rule, stack, [0, first, d])), whole)
        assert torch.equal(torch.cat(on_slices(rule, stack, ends)), whole)


def test_a_slice_must_be_whole_blocks() -> None:
    stack = example(1000, torch.float32, broken=False, weighted=False)
    with pytest.raises(ValueError, match="not a run of whole blocks"):
        on_slices(lambda part: part.centre(), stack, [0, 100, 1000])
