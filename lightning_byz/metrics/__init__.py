"""torchmetrics of what rules do with workers: each for itself, from tensors or from the reports of a run."""

from lightning_byz.metrics.aggregation_error import AggregationError
from lightning_byz.metrics.deliveries import Deliveries
from lightning_byz.metrics.exclusion import Exclusion
from lightning_byz.metrics.staleness import Staleness
from lightning_byz.metrics.traffic import Traffic
from lightning_byz.metrics.worker_means import WorkerMeans

__all__ = ["AggregationError", "Deliveries", "Exclusion", "Staleness", "Traffic", "WorkerMeans"]
