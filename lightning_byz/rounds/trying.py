"""What attackers can try out under a code."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_byz.codes import Code, Interleaved
from lightning_byz.errors import TooManyFaults, TooManyLiars
from lightning_byz.random import derive
from lightning_byz.rounds.defence import Defence
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Trying(Defence):
    """The rules under a code, as attackers see them: in coded rows.

    Args:
        code: What finds them out, unless their rows fit.
        where: How rows are laid out.

    """

    code: Code = field(kw_only=True)
    where: Interleaved = field(kw_only=True)

    def tried(self, stack: Stack, *, step: int, reference: Tensor | None) -> Tensor:
        """Return the mean of the rows that fit; what it is projected on is drawn as attackers may draw it, not as rank 0 will.

        Raises:
            TooManyFaults: If the rows of a group do not fit, so that the step would not be taken.

        """
        draws = torch.Generator().manual_seed(derive(self.seed, self.optimizer, "tried", step))
        try:
            liars = self.code.locate(
                self.code.project(stack.vectors, self.where, stack.slice, generator=draws), dtype=stack.vectors.dtype
            )
        except TooManyLiars as error:
            raise TooManyFaults(str(error)) from None
        kept = torch.ones(len(stack.vectors), dtype=torch.float64, device=stack.vectors.device)
        kept[liars] = 0.0
        return stack.combination(kept / kept.sum())
