"""What rows can look like: honest workers of many scales, and coalitions of attackers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Rows = Callable[[int, int, torch.dtype, torch.Generator], Tensor]


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


HONEST: dict[str, Rows] = {
    "normal": lambda n, d, dtype, generator: _cast(normal(n, d, generator), dtype),
    "common part": lambda n, d, dtype, generator: _cast(1e3 + normal(n, d, generator), dtype),
    "identical": lambda n, d, dtype, generator: _cast(normal(1, d, generator), dtype).repeat(n, 1),
    "zero": lambda n, d, dtype, generator: torch.zeros(n, d, dtype=dtype),
    "few values": lambda n, d, dtype, generator: torch.randint(-1, 2, (n, d), generator=generator).to(dtype),
    "subnormal": lambda n, d, dtype, generator: _cast(normal(n, d, generator) * torch.finfo(dtype).tiny / 8, dtype),
    "small": lambda n, d, dtype, generator: _cast(normal(n, d, generator) * torch.finfo(dtype).tiny ** 0.25, dtype),
    "huge": lambda n, d, dtype, generator: _cast(normal(n, d, generator) * largest(dtype) / 8, dtype),
    "opposite": lambda n, d, dtype, generator: torch.where(torch.arange(n)[:, None] % 2 == 0, 1.0, -1.0).to(dtype).repeat(1, d) * largest(dtype),
}


def largest(dtype: torch.dtype) -> float:
    """The largest number a rule takes: all of the dtype, but for float64 what can still be squared."""
    return min(torch.finfo(dtype).max, 2.0**480)


def _filled(value: float) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    return lambda honest, count, generator: torch.full((count, honest.shape[1]), value, dtype=honest.dtype)


def _largest(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.full((count, honest.shape[1]), largest(honest.dtype), dtype=honest.dtype)


def _both_ends(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None].to(honest.dtype)
    return _largest(honest, count, generator) * signs


def _edge(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Together at one end of the honest range, coordinate by coordinate, or a little beyond."""
    wide = honest.double()
    beyond = 10.0 ** torch.empty(1, dtype=torch.float64).uniform_(-3, 3, generator=generator)
    return _cast(wide.amax(0) + beyond * (wide.amax(0) - wide.amin(0)), honest.dtype).repeat(count, 1)


def _outermost(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Copies of the honest row that lies furthest out: ties, and a shift."""
    wide = honest.double()
    row = (wide - wide.mean(0)).norm(dim=1).argmax()
    return honest[row].repeat(count, 1)


def _copies(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return honest[torch.randint(honest.shape[0], (count,), generator=generator)]


def _ladder(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    scales = torch.finfo(honest.dtype).tiny ** torch.linspace(0.9, -0.9, count, dtype=torch.float64)
    return _cast(scales[:, None] * normal(count, honest.shape[1], generator), honest.dtype)


def _specials(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Every coordinate any special value."""
    limits = torch.finfo(honest.dtype)
    values = [float("nan"), float("inf"), float("-inf"), limits.max, limits.min, limits.tiny, limits.smallest_normal / 4, -0.0, 0.0, 1.0]
    drawn = torch.randint(len(values), (count, honest.shape[1]), generator=generator)
    return torch.tensor(values, dtype=torch.float64)[drawn].to(honest.dtype)


def _one_coordinate(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Honest rows with one coordinate broken, each another one."""
    rows = _copies(honest, count, generator).clone()
    rows[torch.arange(count), torch.randint(honest.shape[1], (count,), generator=generator)] = float("nan")
    return rows


COALITIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "nan": _filled(float("nan")),
    "inf": _filled(float("inf")),
    "-inf": _filled(float("-inf")),
    "largest": _largest,
    "both ends": _both_ends,
    "zero": _filled(0.0),
    "edge": _edge,
    "outermost": _outermost,
    "copies": _copies,
    "ladder": _ladder,
    "specials": _specials,
    "one coordinate": _one_coordinate,
}


def coalition(honest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Attackers each from a family of their own, or all from one."""
    families = list(COALITIONS.values())
    first = families[int(torch.randint(len(families), (1,), generator=generator))]
    rows = first(honest, count, generator)
    if count > 1 and int(torch.randint(3, (1,), generator=generator)) == 0:
        second = families[int(torch.randint(len(families), (1,), generator=generator))]
        rows = torch.cat([rows[: count // 2], second(honest, count - count // 2, generator)])
    return rows


def sizes(generator: torch.Generator, largest_n: int = 33) -> Iterator[tuple[int, int]]:
    """Endless ``(n, attackers)`` with the attackers a strict minority."""
    while True:
        n = int(torch.randint(1, largest_n + 1, (1,), generator=generator))
        yield n, int(torch.randint(0, (n + 1) // 2, (1,), generator=generator))
