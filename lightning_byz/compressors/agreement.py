"""Which of the slices' own largest values are the largest of the whole, ties to the lowest index."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from lightning_byz.compressors.coordinates import Coordinates

_DIGIT = 11  # bits told apart in one sum over the slices


def among_all(
    keys: Int64[Tensor, " c"],
    index: Int64[Tensor, " c"],
    sizes: Sequence[int],
    limits: Sequence[int],
    coordinates: Coordinates,
    *,
    bits: int,
) -> Bool[Tensor, " c"]:
    """Return which of the candidates belong to the largest of their groups over all slices.

    The value from which on they do is found digit by digit, in sums of counts over the slices; of those equal to it the lowest indices belong,
    by gathered counts. The collectives are as many whatever the values, and wherever the slices are.

    Args:
        keys: Of each candidate, the larger the better, below ``2**bits``.
        index: Where it lies, counted from the slice's start; rising.
        sizes: How many coordinates each group has, one behind the other.
        limits: How many each group has room for. Each slice has brought its best of each group, as many or all that it has.
        coordinates: The slice.
        bits: Of a key.

    """
    ends = torch.tensor(list(accumulate(sizes)), device=keys.device)
    groups = torch.searchsorted(ends, index + coordinates.start, right=True)
    level, room = _thresholds(keys, groups, torch.tensor(limits, device=keys.device), coordinates, bits)
    ties = keys == level[groups]
    earlier = _before(ties, index, groups, ends, torch.tensor(sizes, device=keys.device), coordinates)
    counts = torch.zeros_like(ends).scatter_add_(0, groups, ties.long())
    rank = ties.cumsum(0) - (counts.cumsum(0) - counts - earlier)[groups]
    return (keys > level[groups]) | (ties & (rank <= room[groups]))


def _thresholds(
    keys: Tensor, groups: Tensor, room: Tensor, coordinates: Coordinates, bits: int
) -> tuple[Tensor, Tensor]:
    """Return each group's smallest key that belongs, and how many that have it do."""
    level = torch.zeros_like(room)
    for shift, width in _digits(bits):
        alive = keys >> (shift + width) == level[groups]
        place = (groups << width) + ((keys >> shift) & (2**width - 1))
        counts = torch.zeros(len(room) << width, dtype=torch.int64, device=keys.device)
        counts.scatter_add_(0, place, alive.long())
        reached = coordinates.add(counts).view(len(room), -1).flip(1).cumsum(1).flip(1)
        digit = ((reached >= room[:, None]).sum(1) - 1).clamp(min=0)
        above = torch.cat([reached, torch.zeros_like(reached[:, :1])], 1).gather(1, digit[:, None] + 1)[:, 0]
        level, room = (level << width) | digit, room - above
    return level, room


def _digits(bits: int) -> list[tuple[int, int]]:
    """Return the lowest bit and the number of bits of each digit, from the highest on."""
    count = -(-bits // _DIGIT)
    ends = [bits * place // count for place in range(count, -1, -1)]
    return [(low, high - low) for high, low in pairwise(ends)]


def _before(
    ties: Tensor, index: Tensor, groups: Tensor, ends: Tensor, sizes: Tensor, coordinates: Coordinates
) -> Tensor:
    """Return how many ties each group has in the slices before: one that goes on here has the last coordinate of all blocks since it began."""
    blocks = coordinates.blocks
    last = torch.tensor([high - 1 for _, high in blocks.bounds], dtype=torch.int64, device=ties.device)
    holder = torch.searchsorted(ends, last + coordinates.start, right=True)
    block = index // blocks.width
    counts = torch.zeros(len(blocks), dtype=torch.int64, device=ties.device)
    counts.scatter_add_(0, block, (ties & (groups == holder[block])).long())
    everywhere = coordinates.gather(counts.double())
    before = torch.arange(len(everywhere), device=ties.device) * blocks.width < coordinates.start
    began = ends - sizes
    since = (torch.arange(len(everywhere), device=ties.device) + 1) * blocks.width > began[:, None]
    return ((since & before) * everywhere).sum(1).long()
