"""What stale workers deliver: how often, how old it is while it is in use, and what it weighs."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.census import Arrival
from lightning_byz.rounds import Report


class Deliveries(Metric):
    """For each worker under arrivals: how many of its messages were accepted, how old they were while rules used them, and what they weigh.

    ``compute()`` returns a dictionary of vectors (n,): ``delivered``, the deliveries accepted; ``age`` and ``oldest``, the mean and the largest age
    of the message in use, in steps since it was computed, over the steps at which it weighed something (NaN for none); and ``weight``, the part of
    all weight that it had at the last step. All ranks see the same steps: where states are synchronized they are averaged.

    Args:
        workers: Number of workers, n.
        kwargs: As for every torchmetrics ``Metric``.

    Example:
        >>> from lightning_byz.census import Census
        >>> metric = Deliveries(2)
        >>> for step, words in enumerate(([Arrival.ARRIVED] * 2, [Arrival.NOT_DUE, Arrival.ARRIVED])):
        ...     census = Census(words, [1.0, 1.0 + step], [step, 0], [])
        ...     metric.update(Report(step=step, taken=True, census=census, kept=True))
        >>> {name: values.tolist() for name, values in metric.compute().items() if name != "weight"}
        {'delivered': [1.0, 2.0], 'age': [0.5, 0.0], 'oldest': [1.0, 0.0]}
    """

    full_state_update = True  # as in WorkerMeans

    delivered: Tensor
    ages: Tensor
    used: Tensor
    oldest: Tensor
    weights: Tensor

    def __init__(self, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        for name in ("delivered", "ages", "used", "oldest", "weights"):
            self.add_state(name, torch.zeros(workers, dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, report: Report) -> None:
        """Add one step."""
        census = report.census
        ages, weights = torch.tensor([census.ages, census.weights], dtype=torch.float64).to(self.ages)
        used = (weights > 0).to(self.ages)
        accepted = [word is Arrival.ARRIVED for word in census.arrival]
        delivered = accepted if report.deliveries is None else report.deliveries
        self.delivered += torch.tensor(delivered).to(self.delivered)
        self.ages += ages * used
        self.used += used
        self.oldest = torch.maximum(self.oldest, ages * used)
        self.weights = weights

    def compute(self) -> dict[str, Tensor]:
        """Return ``delivered``, ``age``, ``oldest`` and ``weight``, each of n numbers."""
        return self.means()

    def means(self) -> dict[str, Tensor]:
        """Return the same of this rank's steps, as vectors of one number where there is one worker: ``compute`` squeezes these."""
        return {
            "delivered": self.delivered.clone(),
            "age": self.ages / self.used,
            "oldest": self.oldest.masked_fill(self.used == 0, torch.nan),
            "weight": self.weights / self.weights.sum(),
        }
