"""Mimicry."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import principal_spread
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Mimic(Attack):
    r"""All attackers send a copy of the same honest row, :math:`x_k`, which then counts for more than it should.

    Every row is one that an honest worker sends, so no rule can tell it from honest; it hurts where workers hold different data. The copied row is
    the one that goes furthest along the direction in which the honest rows vary most:
    :math:`k = \arg\max_i |\langle v, x_i - \mu \rangle|` with :math:`v` the top eigenvector of the honest rows' weighted covariance.

    In the paper, :math:`v` and :math:`\mu` are running averages over a warm-up, after which one worker is copied to the end of training. Here they
    are those of the step, so the copied worker may change from step to step; with ``worker`` it never does.

    Cost: the Gram matrix of the rows, :math:`O(n^2 d)`, and an eigenvector of n numbers; with ``worker`` a copy.

    Args:
        worker: Id of the worker to copy. None finds one at every step, lower ids first among equals.

    Raises:
        ValueError: If ``worker`` is negative, or at a step is no worker or one of the attackers. At a step where it is absent, the attackers send
            their own rows, as they do where no honest row has weight.

    References:
        Karimireddy, He, Jaggi. Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing. ICLR 2022, arXiv 2006.09365.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 5.0], [1.0, 5.0], [7.0, 5.5], [2.0, 4.5], [100.0, 100.0]])
        >>> Mimic().replace(Sight(Stack(rows), [4], torch.Generator()))
        tensor([[7.0000, 5.5000]])
    """

    worker: int | None = None

    def __post_init__(self) -> None:
        if self.worker is not None and self.worker < 0:
            raise ValueError(f"worker must be None or a worker id >= 0, not {self.worker}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where there is none to copy."""
        honest = sight.honest_weights
        worker = self.worker
        if worker is not None:
            self._check(worker, len(honest), sight.attackers)
        if not bool(honest.any()) or (worker is not None and not bool(honest[worker] > 0)):
            return sight.own
        copied = _furthest(sight.stack, honest) if worker is None else worker
        return sight.stack.vectors[copied].repeat(len(sight.attackers), 1)

    def _check(self, worker: int, workers: int, attackers: Sequence[int]) -> None:
        if worker >= workers:
            raise ValueError(
                f"Mimic(worker={worker}): there is no such worker; the {workers} workers are 0 to {workers - 1}"
            )
        if worker in attackers:
            raise ValueError(
                f"Mimic(worker={worker}) names one of the attackers {list(attackers)}: name an honest worker, or None to find one"
            )


def _furthest(stack: Stack, honest: Float64[Tensor, " n"]) -> int:
    """The honest row that goes furthest along the top direction of honest variance."""
    present = honest.nonzero()[:, 0].cpu()
    shares, gram = honest.cpu()[present], stack.gram().cpu()[present][:, present]
    _, along = principal_spread(gram, shares)
    return int(present[(along >= along.max() * (1 - 1e-9)).nonzero()[0, 0]])
