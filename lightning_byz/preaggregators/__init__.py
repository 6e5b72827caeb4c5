"""Pre-aggregators: from the messages of one step to others, on which an aggregator does better."""

from lightning_byz.preaggregators.nnm import NNM
from lightning_byz.preaggregators.preaggregator import PreAggregator

__all__ = [
    "NNM",
    "PreAggregator",
]
