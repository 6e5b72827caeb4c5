"""Old messages."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight


@dataclass(frozen=True)
class Replay(Attack):
    """Send the message that one would have sent some steps ago, as a worker does whose parameters or buffers are stale.

    At the start of a run it is the oldest message there is; at the first step, one's own.

    Cost: no time; the memory of ``delay`` rows for each attacker.

    Args:
        delay: Steps, at least 1. No paper fixes it; ten honest steps are visible in most training, and affordable.

    Raises:
        ValueError: If ``delay`` is not a whole number >= 1.

    Example:
        >>> import torch
        >>> from lightning_byz.stack import Stack
        >>> stack, past = Stack(torch.tensor([[1.0], [9.0]])), {1: [torch.tensor([6.0]), torch.tensor([7.0]), torch.tensor([8.0])]}
        >>> Replay(delay=2).replace(Sight(stack, [1], torch.Generator(), past=past))
        tensor([[7.]])
    """

    delay: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.delay, int) or self.delay < 1:
            raise ValueError(f"delay must be a whole number of steps >= 1, not {self.delay}")

    @property
    def remembers(self) -> int:
        """``delay`` steps."""
        return self.delay

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """For each attacker its row from ``delay`` steps ago."""
        rows = sight.own
        for place, worker in enumerate(sight.attackers):
            kept = sight.past.get(worker, ())
            if len(kept):
                rows[place] = kept[max(len(kept) - self.delay, 0)]
        return rows
