"""Estimators: a worker's gradient(s) -> the vector it sends."""

from lightning_byz.estimators.dm21 import DM21
from lightning_byz.estimators.estimator import Estimator
from lightning_byz.estimators.gradient import Gradient
from lightning_byz.estimators.storm import Storm
from lightning_byz.estimators.worker_momentum import WorkerMomentum

__all__ = ["DM21", "Estimator", "Gradient", "Storm", "WorkerMomentum"]
