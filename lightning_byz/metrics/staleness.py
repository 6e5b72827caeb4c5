"""How old the messages are that rules use."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.census import Census
from lightning_byz.rounds import Report


class Staleness(Metric):
    """Mean and largest age of the messages in use, in steps since they were computed.

    ``compute()`` returns a dictionary: ``mean_age`` over all messages in use at all steps, and ``max_age``. A message is in use where it weighs
    something. In a run whose workers all send at every step, both are 0. NaN stands for no message at all.

    Args:
        kwargs: As for every torchmetrics ``Metric``.

    Example:
        >>> metric = Staleness()
        >>> metric.update(torch.tensor([0, 3, 9]), weights=torch.tensor([1.0, 1.0, 0.0]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'mean_age': 1.5, 'max_age': 3.0}
    """

    higher_is_better = False
    full_state_update = False

    ages: Tensor
    messages: Tensor
    oldest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("ages", zero, dist_reduce_fx="sum")
        self.add_state("messages", zero.clone(), dist_reduce_fx="sum")
        self.add_state("oldest", zero.clone(), dist_reduce_fx="max")

    def update(self, seen: Report | Census | Tensor, weights: Tensor | None = None) -> None:
        """Add one step.

        Args:
            seen: The step's report, its census, or the ages (n,) of its messages.
            weights: Beside ages, how much each message counts (n,); ``None`` for all alike.
        """
        if isinstance(seen, Report | Census):
            census = seen.census if isinstance(seen, Report) else seen
            ages, weights = torch.tensor(census.ages), torch.tensor(census.weights)
        else:
            ages = seen
        used = (ages if weights is None else ages[weights > 0]).to(self.ages)
        if len(used):
            self.ages += used.sum()
            self.messages += len(used)
            self.oldest = torch.maximum(self.oldest, used.max())

    def compute(self) -> dict[str, Tensor]:
        """Return ``mean_age`` and ``max_age``."""
        return {
            "mean_age": self.ages / self.messages,
            "max_age": self.oldest.masked_fill(self.messages == 0, torch.nan),
        }
