"""What kernels find out on their way."""

from dataclasses import dataclass

from jaxtyping import Float64, Shaped
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.blocks import square_sums
from lightning_byz.kernels.usable import suspects


@dataclass
class Aside:
    """What a kernel is asked besides its result, where finding it out on the way saves a reading of all rows, and what it answers.

    Kernels need not answer: ``answered`` does the rest.

    Args:
        blocks: Of which the squared distances of all rows from the result are wanted; none if None.
        look: Whether a first look for unusable numbers is wanted.
        squares: One line per block, in float64.
        suspects: Not zero for each row that may hold such numbers.
    """

    blocks: Blocks | None = None
    look: bool = False
    squares: Float64[Tensor, "blocks n"] | None = None
    suspects: Shaped[Tensor, " n"] | None = None


def answered(vectors: Tensor, point: Tensor, aside: Aside) -> Aside:
    """``aside`` with what was not found on the way to ``point``."""
    if aside.blocks is not None and aside.squares is None:
        aside.squares = square_sums(vectors, point, aside.blocks)
    if aside.look and aside.suspects is None:
        aside.suspects = suspects(vectors)
    return aside
