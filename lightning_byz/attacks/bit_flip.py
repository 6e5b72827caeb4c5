"""Flipped bits."""

from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.random import distinct

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class BitFlip(Attack):
    """Flip bits of one's own message, as hardware does that computes wrongly without a word.

    At each step and for each attacker, ``coordinates`` of all its coordinates are drawn and ``flips`` different bits of each are flipped, whatever
    they mean: sign, exponent or fraction. The result may be huge or not a number.

    Cost: a draw per coordinate hit, on every rank for the whole vector, and a copy of the rows. From half of all coordinates on, a permutation of d.

    Args:
        flips: Bits flipped in each number that is hit, at most the bits of its dtype. Two by default: with real faults several bits are wrong
            more often than one.
        coordinates: How many numbers of the whole vector are hit; all, where there are fewer. No study fixes it for gradients.

    Raises:
        ValueError: If ``flips`` or ``coordinates`` is not a whole number >= 1, or a number has fewer than ``flips`` bits.

    References:
        Dixit, Pendharkar, Beadon, Mason, Chakravarthy, Muthiah, Sankar. Silent Data Corruptions at Scale. 2021, arXiv 2102.11245.
        Tung, Huang, Saxena, Shirvani, Hukerikar, Jain, Tyagi, Gongalore. The Anatomy of Silent Data Corruption: GPU Error Pattern Study and
        Modeling Guidance. DSN 2026, arXiv 2605.04213.

    Example:
        >>> from lightning_byz.stack import Stack
        >>> sent = BitFlip(flips=32, coordinates=2).replace(Sight(Stack(torch.ones(3, 5)), [2], torch.Generator().manual_seed(0)))
        >>> int((sent == 1.0).sum()), sent.unique()
        (3, tensor([-4.0000,  1.0000]))
    """

    flips: int = 2
    _: KW_ONLY
    coordinates: int = 16

    def __post_init__(self) -> None:
        for name in ("flips", "coordinates"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, not {value}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The attackers' rows with bits flipped."""
        stack, generator, rows = sight.stack, sight.generator, sight.own
        bits = rows.view(_WHOLE[rows.element_size()])
        start = 0 if stack.slice is None else stack.slice.start
        for row in bits:
            places = distinct(min(self.coordinates, stack.total), stack.total, generator) - start
            masks = self._masks(len(places), 8 * rows.element_size(), generator)
            here = ((places >= 0) & (places < rows.shape[1])).nonzero()[:, 0]
            hit = places[here].to(rows.device)
            row[hit] = row[hit] ^ masks[here].to(rows.device, bits.dtype)
        return rows

    def _masks(self, count: int, width: int, generator: torch.Generator) -> Int64[Tensor, " k"]:
        """Whole numbers with ``flips`` of their lowest ``width`` bits set."""
        if self.flips > width:
            raise ValueError(f"flips must be at most the {width} bits of a number in these rows, not {self.flips}")
        order = torch.rand(count, width, generator=generator, device=generator.device, dtype=torch.float64).argsort(
            dim=1
        )
        return (torch.ones_like(order) << order)[:, : self.flips].sum(1)
