"""How the coordinates of a gradient lie in a coded row."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from lightning_byz.blocks import Blocks, block_size
from lightning_byz.slice import Slice


@dataclass(frozen=True)
class Interleaved:
    r"""The coordinates of a gradient, cut into pieces that a code adds up, block by block.

    A run of ``pieces`` neighbouring pieces of the gradient becomes one block of a coded row, in which ``carried`` pieces lie. So a run of blocks of
    coded rows decodes alone, and to one run of coordinates. The last block is as narrow as what is left: of a coded row no more than ``pieces - 1``
    numbers are padding. A row has as many blocks as the gradient has runs of pieces, so that an exchange that is opened for either cuts both alike.

    Args:
        total: Coordinates of the gradient, d.
        pieces: Into how many pieces its runs are cut.
        carried: How many of that length a block of a coded row has.
        width: Numbers of a whole block of a coded row, a multiple of ``carried``; 0 means ``block_size(coded)``, which it is afterwards.

    Raises:
        ValueError: If ``width`` is not a multiple of ``carried``, or below 0.

    Example:
        >>> rows = Interleaved(1000, pieces=4)
        >>> rows.coded, rows.width, rows.decoded(Slice(128, 250, 250, lambda partials: partials, lambda counts: counts)).start
        (250, 64, 512)

    """

    total: int
    pieces: int = 1
    carried: int = 1
    width: int = 0

    def __post_init__(self) -> None:
        """Fill in the width; refuse one that pieces do not fit in."""
        if self.width < 0 or self.width % self.carried:
            raise ValueError(
                f"Interleaved(width={self.width}): {self.carried} pieces lie in a block of a coded row, so that its width must be a multiple of "
                f"{self.carried}, or 0 for that of block_size."
            )
        object.__setattr__(self, "width", self.width or block_size(self.coded))

    @cached_property
    def coded(self) -> int:
        """Numbers of a coded row."""
        return -(-self.total // self.pieces) * self.carried

    def blocks(self, slice: Slice | None = None) -> Blocks:
        """The blocks of coded rows, all or those of a slice of them.

        Raises:
            ValueError: If the slice is one of other rows, or in other blocks.

        """
        if slice is None:
            return Blocks.of(self.coded, self.width)
        if (slice.total, slice.width) != (self.coded, self.width):
            raise ValueError(
                f"a slice of {slice.total} coordinates in blocks of {slice.width} is none of coded rows of {self.coded} in blocks of {self.width}: "
                f"open the exchange for {self.coded}, with width={self.width}."
            )
        return slice.blocks

    def decoded(self, slice: Slice) -> Slice:
        """Where in the gradient a slice of coded rows lies, in blocks as wide as what becomes of one."""
        width = self._long * self.pieces
        return Slice(self._spread(slice.start), self._spread(slice.stop), self.total, slice.gather, slice.add, width)

    def length(self, slice: Slice | None) -> int:
        """Coordinates of the gradient that are decoded from the whole, or from a slice."""
        if slice is None:
            return self.total
        own = self.decoded(slice)
        return own.stop - own.start

    def cut(self, vector: Float[Tensor, " d"]) -> list[Float[Tensor, "b p l"]]:
        """Return the pieces of a gradient: views of all whole blocks, and a copy of the last one, padded with zeros, where it is narrower."""
        ends, runs = self._whole * self._long * self.pieces, self._whole
        cut, rest = [vector[:ends].view(runs, self.pieces, self._long)], vector[ends:]
        if len(rest):
            padded = rest.new_zeros(-(-len(rest) // self.pieces) * self.pieces)
            padded[: len(rest)] = rest
            cut.append(padded.view(1, self.pieces, -1))
        return cut

    def cut_row(self, row: Float[Tensor, " c"]) -> list[Float[Tensor, "b p l"]]:
        """Return the pieces of a coded row, all of them views."""
        ends = self._whole * self.width
        cut, rest = [row[:ends].view(self._whole, self.carried, self._long)], row[ends:]
        return [*cut, rest.view(1, self.carried, -1)] if len(rest) else cut

    @property
    def _long(self) -> int:
        """Numbers of a piece."""
        return self.width // self.carried

    @property
    def _whole(self) -> int:
        """Blocks that the gradient fills."""
        return self.total // (self._long * self.pieces)

    def _spread(self, end: int) -> int:
        return min(end // self.carried * self.pieces, self.total)
