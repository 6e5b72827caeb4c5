"""The contract that every stage of this library keeps, to check stages of your own."""

from lightning_byz.testing.check import (
    check_aggregator,
    check_attack,
    check_compressor,
    check_estimator,
    check_preaggregator,
)
from lightning_byz.testing.coding import check_code
from lightning_byz.testing.linking import check_link
from lightning_byz.testing.on_ranks import check_exchange

__all__ = [
    "check_aggregator",
    "check_attack",
    "check_code",
    "check_compressor",
    "check_estimator",
    "check_exchange",
    "check_link",
    "check_preaggregator",
]
