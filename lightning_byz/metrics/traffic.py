"""What steps cost beside the training itself."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.rounds import Report


class Traffic(Metric):
    """Bytes in and out, the bytes of messages wherever workers live, and the time spent in the exchange and in the rules.

    ``compute()`` returns a dictionary: ``bytes_received`` and ``bytes_sent`` per step, and ``bytes_total`` and ``bytes_sent_total``, of all ranks
    together where states are synchronized, else of this one; ``uplink_bytes`` per step and ``uplink_total``, what the messages of all workers take on
    a wire, and ``downlink_bytes`` and ``downlink_total``, what the aggregate takes to one of them; ``exchange_seconds`` and ``rule_seconds``, means
    over steps (and ranks).

    Args:
        kwargs: As for every torchmetrics ``Metric``.

    Example:
        >>> metric = Traffic()
        >>> metric.update(1000); metric.update(3000)
        >>> {name: float(value) for name, value in metric.compute().items() if name.startswith("bytes_")}
        {'bytes_received': 2000.0, 'bytes_total': 4000.0, 'bytes_sent': 0.0, 'bytes_sent_total': 0.0}
    """

    full_state_update = True  # the number of steps is alike on all ranks, so it is no sum of states

    steps: Tensor
    received: Tensor
    sent: Tensor
    uplink: Tensor
    downlink: Tensor
    exchange: Tensor
    rule: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        reductions = {"steps": "max", "received": "sum", "sent": "sum", "uplink": "max", "downlink": "max"}
        for name, reduction in {**reductions, "exchange": "mean", "rule": "mean"}.items():
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx=reduction)

    def update(self, seen: Report | Tensor | int, exchange_seconds: float = 0.0, rule_seconds: float = 0.0) -> None:
        """Add one step.

        Args:
            seen: The step's report, or the bytes that it received.
            exchange_seconds: Beside bytes, time spent in the exchange.
            rule_seconds: Beside bytes, time spent in the rules.
        """
        if isinstance(seen, Report):
            received, exchange_seconds, rule_seconds = seen.bytes_received, seen.exchange_seconds, seen.rule_seconds
            self.sent += seen.bytes_sent
            self.uplink += seen.uplink_bytes
            self.downlink += seen.aggregate_bytes
        else:
            received = int(seen)
        self.steps += 1
        self.received += received
        self.exchange += exchange_seconds
        self.rule += rule_seconds

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers that the class names."""
        return {
            "bytes_received": self.received / self.steps,
            "bytes_total": self.received.clone(),
            "bytes_sent": self.sent / self.steps,
            "bytes_sent_total": self.sent.clone(),
            "uplink_bytes": self.uplink / self.steps,
            "uplink_total": self.uplink.clone(),
            "downlink_bytes": self.downlink / self.steps,
            "downlink_total": self.downlink.clone(),
            "exchange_seconds": self.exchange / self.steps,
            "rule_seconds": self.rule / self.steps,
        }
