"""The contract that every rule of this library keeps, to check rules of your own."""

from lightning_byz.testing.check import check_aggregator, check_attack, check_preaggregator

__all__ = [
    "check_aggregator",
    "check_attack",
    "check_preaggregator",
]
