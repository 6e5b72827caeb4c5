"""Whether all ranks still train the same parameters: a digest of their bits, compared now and then."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_byz.errors import RanksDrifted
from lightning_byz.exchange import Exchange, Placement

CHUNK = 1 << 16
BASE = 0x5851F42D4C957F2D
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def refuse_drifted(
    named: Sequence[tuple[str, Tensor]], exchange: Exchange, placement: Placement, *, steps: int
) -> None:
    """Stop every rank if the bits of the parameters differ between ranks, and name the ranks that most others contradict.

    One sum of a number per rank travels, and the device is read once. Every rank must call it.

    Raises:
        RanksDrifted: On all ranks.

    """
    digests = _table(digest([parameter for _, parameter in named]), exchange, placement).flatten().tolist()
    if len(set(digests)) == 1:
        return
    table = _table(torch.stack([digest([parameter]) for _, parameter in named]), exchange, placement)
    differing = [name for (name, _), column in zip(named, table.T.tolist(), strict=True) if len(set(column)) > 1]
    more = f" and {len(differing) - 1} more of {len(named)}" if len(differing) > 1 else f" of {len(named)} tensors"
    raise RanksDrifted(
        f"After {steps} steps of this run {_who(digests)}: {', '.join(differing[:1])}{more}. Something changed parameters there that did"
        " not happen everywhere: look for it on that rank, and resume from the last checkpoint."
    )


def digest(tensors: Sequence[Tensor]) -> Int64[Tensor, ""]:
    """Return a number that any change of one element changes, and that depends on where each element is.

    The sum, modulo 2^64, of the bits in words of 64, times odd numbers; all on their device. No protection against who wants to deceive.
    """
    odd = torch.arange(1, 2 * CHUNK, 2, dtype=torch.int64, device=tensors[0].device) * BASE
    total = odd.new_zeros(())
    for flat in _joined(tensors):
        per_word = 8 // flat.element_size()
        aligned = flat if flat.storage_offset() % per_word == 0 else flat.clone()
        whole = len(flat) - len(flat) % per_word
        rest = aligned[whole:].view(BITS[flat.element_size()]).to(torch.int64)
        for chunk in (rest, *aligned[:whole].view(torch.int64).split(CHUNK)):
            total = total * BASE + (chunk * odd[: len(chunk)]).sum()
    return total


def _joined(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Return the tensors flat: large ones each, small ones joined by dtype."""
    small: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
        if len(flat) < CHUNK:
            small.setdefault(flat.dtype, []).append(flat)
        else:
            yield flat
    yield from map(torch.cat, small.values())


def _table(own: Tensor, exchange: Exchange, placement: Placement) -> Tensor:
    """Every rank's numbers, one rank per row."""
    table = own.new_zeros(placement.ranks, own.numel())
    table[placement.rank] = own.flatten()
    return exchange.all_reduce(table)


def _who(digests: Sequence[int]) -> str:
    """Who differs from whom, in words."""
    usual, count = Counter(digests).most_common(1)[0]
    if 2 * count <= len(digests):
        return f"the {len(digests)} ranks have {len(set(digests))} different sets of parameters, and no majority says whose are right"
    away = [rank for rank, one in enumerate(digests) if one != usual]
    names = f"{'ranks' if len(away) > 1 else 'rank'} {', '.join(map(str, away))}"
    return f"the parameters of {names} are not those of the other {count} ranks"
