"""Training that survives bad workers: Byzantine-robust aggregation for PyTorch Lightning."""

from lightning_byz.callbacks import WorkerMonitor
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.stack import Slice, Stack
from lightning_byz.strategies import RobustStrategy

__version__ = "0.1.0"

__all__ = ["RobustStrategy", "Slice", "Stack", "ToleranceError", "TooManyFaults", "WorkerMonitor"]
