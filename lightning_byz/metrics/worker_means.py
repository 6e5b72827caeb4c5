"""What became of each worker's messages, over steps."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.census import Arrival
from lightning_byz.rounds import Report

_COUNTS = ("left_out", "broken", "absent", "named")
_SUMS = ("coefficients", "coefficient_steps", "norms", "norm_steps", "distances", "distance_steps")


class WorkerMeans(Metric):
    """For each worker: its mean share in the aggregate, its mean norm and distance from it, and how often it was left out, broken or absent.

    ``compute()`` returns a dictionary of vectors (n,): ``coefficient``, ``norm`` and ``distance``, means over the steps at which each is known (NaN
    for none), and the counts ``left_out``, ``broken`` and ``absent``, under a code also ``named``, as liar. All ranks see the same steps:
    where states are synchronized they are averaged.

    Args:
        workers: Number of workers, n.
        kwargs: As for every torchmetrics ``Metric``.

    Example:
        >>> from lightning_byz.census import Arrival, Census
        >>> from lightning_byz.rounds import Report
        >>> census = Census([Arrival.ARRIVED, Arrival.BROKEN], [1.0, 0.0], [0, 0], [])
        >>> metric = WorkerMeans(2)
        >>> metric.update(Report(step=0, taken=True, census=census, coefficients=torch.tensor([1.0, 0.0], dtype=torch.float64)))
        >>> metric.compute()["coefficient"].tolist(), metric.compute()["left_out"].tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """

    full_state_update = True  # states are averaged over ranks, which is not how those of two batches are joined

    steps: Tensor
    measured: Tensor
    coded: Tensor
    named: Tensor
    left_out: Tensor
    broken: Tensor
    absent: Tensor
    coefficients: Tensor
    coefficient_steps: Tensor
    norms: Tensor
    norm_steps: Tensor
    distances: Tensor
    distance_steps: Tensor

    def __init__(self, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        for name in ("steps", "measured", "coded"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="mean")
        for name in (*_COUNTS, *_SUMS):
            self.add_state(name, torch.zeros(workers, dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, report: Report) -> None:
        """Add one step. Norms and distances count where they were measured, coefficients where the rule has any."""
        arrival = report.census.arrival
        self.steps += 1
        self.left_out += torch.tensor(report.left_out).to(self.left_out)
        self.broken += torch.tensor([word is Arrival.BROKEN for word in arrival]).to(self.broken)
        self.absent += torch.tensor([word is Arrival.ABSENT for word in arrival]).to(self.absent)
        if report.named is not None:
            self.coded += 1
            self.named[list(report.named)] += 1
        if report.coefficients is not None:
            self.coefficients += report.coefficients.to(self.coefficients)
            self.coefficient_steps += 1
        if report.norms is not None:
            norms = report.norms.to(self.norms)
            self.norms += norms.where(norms.isfinite(), 0.0)
            self.norm_steps += norms.isfinite()
        if report.distances is not None:
            distances = report.distances.to(self.distances)
            self.measured += 1
            self.distances += distances.where(distances.isfinite(), 0.0)
            self.distance_steps += distances.isfinite()

    def compute(self) -> dict[str, Tensor]:
        """Return ``coefficient``, ``norm``, ``distance``, ``left_out``, ``broken``, ``absent`` and perhaps ``named``, each of n numbers."""
        return self.means()

    def means(self) -> dict[str, Tensor]:
        """Return the same of this rank's steps, as vectors of one number where there is one worker: ``compute`` squeezes these."""
        return {
            "coefficient": self.coefficients / self.coefficient_steps,
            "norm": self.norms / self.norm_steps,
            "distance": self.distances / self.distance_steps,
            **{name: getattr(self, name).clone() for name in _COUNTS if name != "named" or self.coded > 0},
        }
