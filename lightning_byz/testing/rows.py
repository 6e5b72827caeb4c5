"""What rows can look like: honest workers of many scales, and coalitions of attackers."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_byz.testing.case import Case

Honest = Callable[[Case, int, int, torch.dtype], Tensor]
Coalition = Callable[[Case, Tensor, int], Tensor]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def largest(dtype: torch.dtype) -> float:
    """The largest number a rule takes: all of the dtype, but for float64 what can still be squared."""
    return min(torch.finfo(dtype).max, 2.0**480)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, what would overflow replaced by the largest number that a rule takes."""
    return values.clamp(-largest(dtype), largest(dtype)).to(dtype)


def _scaled(factor: Callable[[torch.dtype], float], shift: float = 0.0) -> Honest:
    return lambda case, n, d, dtype: cast(shift + case.normal(n, d) * factor(dtype), dtype)


HONEST: dict[str, Honest] = {
    "normal": _scaled(lambda dtype: 1.0),
    "common part": _scaled(lambda dtype: 1.0, 1e3),
    "identical": lambda case, n, d, dtype: cast(case.normal(1, d), dtype).repeat(n, 1),
    "zero": lambda case, n, d, dtype: torch.zeros(n, d, dtype=dtype),
    "few values": lambda case, n, d, dtype: torch.randint(-1, 2, (n, d), generator=case.generator).to(dtype),
    "subnormal": _scaled(lambda dtype: torch.finfo(dtype).tiny / 8),
    "small": _scaled(lambda dtype: torch.finfo(dtype).tiny ** 0.25),
    "huge": _scaled(lambda dtype: largest(dtype) / 8),
    "opposite": lambda case, n, d, dtype: (
        torch.where(torch.arange(n)[:, None] % 2 == 0, 1.0, -1.0).to(dtype).repeat(1, d) * largest(dtype)
    ),
    "scales": lambda case, n, d, dtype: cast(case.normal(n, d) * 10 ** (3 * case.normal(1, d)), dtype),
    "two camps": lambda case, n, d, dtype: cast(
        case.normal(n, d) * 1e-2 + torch.where(torch.arange(n)[:, None] % 2 == 0, 1.0, -1.0), dtype
    ),
    "one far": lambda case, n, d, dtype: cast(case.normal(n, d) + 1e3 * (torch.arange(n)[:, None] == 0), dtype),
}


def _filled(value: float) -> Coalition:
    return lambda case, honest, count: torch.full((count, honest.shape[1]), value, dtype=honest.dtype)


def _largest(case: Case, honest: Tensor, count: int) -> Tensor:
    return torch.full((count, honest.shape[1]), largest(honest.dtype), dtype=honest.dtype)


def _both_ends(case: Case, honest: Tensor, count: int) -> Tensor:
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None].to(honest.dtype)
    return _largest(case, honest, count) * signs


def _edge(case: Case, honest: Tensor, count: int) -> Tensor:
    """Together at one end of the honest range, coordinate by coordinate, or a little beyond."""
    wide = honest.double()
    beyond = case.one_of([0.0, 10 ** case.real(-3, 3)])
    return cast(wide.amax(0) + beyond * (wide.amax(0) - wide.amin(0)), honest.dtype).repeat(count, 1)


def _together(case: Case, honest: Tensor, count: int) -> Tensor:
    """Together at some distance from the honest mean, in units of the honest deviation."""
    wide = honest.double()
    direction = case.one_of([case.normal(honest.shape[1]), torch.ones(honest.shape[1], dtype=torch.float64)])
    return cast(wide.mean(0) + 10 ** case.real(-2, 3) * direction * wide.std(0, correction=0), honest.dtype).repeat(
        count, 1
    )


def _against_the_mean(case: Case, honest: Tensor, count: int) -> Tensor:
    return cast(-(10 ** case.real(-2, 4)) * honest.double().mean(0), honest.dtype).repeat(count, 1)


def _outermost(case: Case, honest: Tensor, count: int) -> Tensor:
    """Copies of the honest row that lies furthest out: ties, and a shift."""
    wide = honest.double()
    return honest[(wide - wide.mean(0)).norm(dim=1).argmax()].repeat(count, 1)


def _copies(case: Case, honest: Tensor, count: int) -> Tensor:
    return honest[torch.randint(honest.shape[0], (count,), generator=case.generator)]


def _almost_copies(case: Case, honest: Tensor, count: int) -> Tensor:
    """Honest rows, the last bit of each number changed or not."""
    rows = _copies(case, honest, count)
    return cast(rows.double() * (1 + torch.finfo(rows.dtype).eps * case.normal(*rows.shape).sign()), rows.dtype)


def _ladder(case: Case, honest: Tensor, count: int) -> Tensor:
    """Each attacker of another size, from the smallest numbers to the largest: far ones shield the near ones."""
    scales = torch.finfo(honest.dtype).tiny ** torch.linspace(0.9, -0.9, count, dtype=torch.float64)
    return cast(scales[:, None] * case.normal(count, honest.shape[1]), honest.dtype)


def _pairs(case: Case, honest: Tensor, count: int) -> Tensor:
    """Opposite pairs of one size, which cancel where they are added: about zero, or about the honest mean."""
    top = torch.finfo(honest.dtype).max ** case.real(0.1, 1)
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None]
    centre = honest.double().mean(0) * case.one_of([0.0, 1.0])
    return cast(
        centre + signs * top * case.one_of([torch.ones(honest.shape[1]), case.normal(honest.shape[1]).sign()]),
        honest.dtype,
    )


def _specials(case: Case, honest: Tensor, count: int) -> Tensor:
    """Every coordinate any special value."""
    limits = torch.finfo(honest.dtype)
    values = [
        float("nan"),
        float("inf"),
        float("-inf"),
        limits.max,
        limits.min,
        limits.tiny,
        limits.smallest_normal / 4,
        -0.0,
        0.0,
        1.0,
    ]
    drawn = torch.randint(len(values), (count, honest.shape[1]), generator=case.generator)
    return torch.tensor(values, dtype=torch.float64)[drawn].to(honest.dtype)


def _finite_specials(case: Case, honest: Tensor, count: int) -> Tensor:
    return cast(_specials(case, honest, count).double().nan_to_num(nan=0.0), honest.dtype)


def _one_coordinate(case: Case, honest: Tensor, count: int) -> Tensor:
    """Honest rows with one coordinate broken, each another one."""
    rows = _copies(case, honest, count).clone()
    rows[torch.arange(count), torch.randint(honest.shape[1], (count,), generator=case.generator)] = case.one_of(
        [float("nan"), float("inf")]
    )
    return rows


COALITIONS: dict[str, Coalition] = {
    "nan": _filled(float("nan")),
    "inf": _filled(float("inf")),
    "-inf": _filled(float("-inf")),
    "largest": _largest,
    "both ends": _both_ends,
    "zero": _filled(0.0),
    "edge": _edge,
    "together": _together,
    "against the mean": _against_the_mean,
    "outermost": _outermost,
    "copies": _copies,
    "almost copies": _almost_copies,
    "ladder": _ladder,
    "pairs": _pairs,
    "specials": _specials,
    "finite specials": _finite_specials,
    "one coordinate": _one_coordinate,
}


def coalition(case: Case, honest: Tensor, count: int) -> Tensor:
    """Attackers from one family, or half of them from another; noted as ``attackers``."""
    first = case.one_of(list(COALITIONS))
    second = case.one_of(list(COALITIONS)) if count > 1 and case.chance(0.4) else first
    case.note(attackers=f"{count} ({first!r})" if first == second else f"{count} ({first!r} and {second!r})")
    if first == second:
        return COALITIONS[first](case, honest, count)
    return torch.cat(
        [COALITIONS[first](case, honest, count // 2), COALITIONS[second](case, honest, count - count // 2)]
    )
