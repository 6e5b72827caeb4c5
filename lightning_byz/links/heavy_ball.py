"""Momentum where the rules are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.links.link import Link, Received


@dataclass(frozen=True)
class HeavyBall(Link):
    r"""Average each worker's messages over time where the rules are; the worker remembers nothing.

    .. math:: m_t = \beta\,m_{t-1} + (1 - \beta)\,C(v_t), \qquad m_0 = 0,

    and the rules see :math:`m_t`. With ``Gradient`` and ``RandomK(shared=True)``, one mask for all workers at each step, this is RoSDHB.

    Cost: two passes per row at the rules; memory: n d numbers over all ranks at the rules' end.

    Args:
        beta: Weight of the past, in [0, 1). The default 0.9 is the value of the authors' code.

    Raises:
        ValueError: If ``beta`` is outside [0, 1).

    References:
        Gupta, Honsell, Xu, Gupta, Neglia. Reconciling Communication Compression and Byzantine-Robustness in Distributed Learning. AISTATS 2026,
            arXiv 2508.17129.

    Example:
        >>> HeavyBall(beta=0.5).receive(torch.tensor([2.0, 2.0]), torch.tensor([4.0, 0.0])).row
        tensor([3., 1.])

    """

    beta: float = 0.9

    at_rules: ClassVar[bool] = True
    exceptions: ClassVar[frozenset[str]] = frozenset({"message"})

    def __post_init__(self) -> None:
        """Refuse a weight outside [0, 1)."""
        number = isinstance(self.beta, int | float) and not isinstance(self.beta, bool) and 0.0 <= self.beta < 1.0
        if not number:
            raise ValueError(
                f"HeavyBall(beta={self.beta!r}): beta must be in [0, 1); 0.9 averages over about ten steps."
            )

    def receive(self, state: Tensor | None, decoded: Tensor) -> Received:
        """Return the new average."""
        assert state is not None
        average = torch.mul(state, self.beta).add_(decoded, alpha=1.0 - self.beta)
        return Received(average, average)
