"""Training that survives bad workers: Byzantine-robust aggregation for PyTorch Lightning.

Rules, pre-aggregators, attacks, estimators, compressors, links, codes, exchanges, partitions, optimizers and ``lightning_byz.testing`` load torch
and not Lightning, which is imported when ``RobustStrategy`` or ``WorkerMonitor`` is first used.

``Trainer(strategy="robust")`` needs the name to be known to Lightning. ``import lightning_byz.strategies`` and ``from lightning_byz import
RobustStrategy`` make it so wherever they stand; a bare ``import lightning_byz`` does if ``lightning.pytorch`` has been imported before it. Lightning
here is the package ``lightning``: the Trainer of ``pytorch_lightning`` belongs to another class of strategies and takes neither name nor class.
"""

import importlib
import sys
import typing

from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.stack import Slice, Stack

if typing.TYPE_CHECKING:
    from lightning_byz.callbacks import WorkerMonitor
    from lightning_byz.optimizers import RobustOptimizer
    from lightning_byz.strategies import AsyncRobustStrategy, RobustStrategy

__version__ = "0.1.0"

__all__ = [
    "AsyncRobustStrategy",
    "RobustOptimizer",
    "RobustStrategy",
    "Slice",
    "Stack",
    "ToleranceError",
    "TooManyFaults",
    "WorkerMonitor",
]

_LATER = {
    "AsyncRobustStrategy": "strategies",
    "RobustOptimizer": "optimizers",
    "RobustStrategy": "strategies",
    "WorkerMonitor": "callbacks",
}
_ROOMS = (
    "aggregators",
    "arrivals",
    "attacks",
    "callbacks",
    "codes",
    "compressors",
    "data",
    "demos",
    "estimators",
    "exchange",
    "links",
    "metrics",
    "optimizers",
    "preaggregators",
    "strategies",
    "testing",
)


def __getattr__(name: str) -> typing.Any:
    """Import what needs Lightning, and rooms that nobody has imported yet, when they are asked for."""
    if name in _LATER:
        value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


if sys.modules.get("lightning.pytorch") is not None:  # where there may be a Trainer, it is to know the strategy's name
    importlib.import_module(f"{__name__}.strategies")
