"""Pre-aggregators: from the messages of one step to others, on which an aggregator does better."""

from lightning_byz.preaggregators.arc import ARC
from lightning_byz.preaggregators.bucketing import Bucketing
from lightning_byz.preaggregators.clipping import Clipping
from lightning_byz.preaggregators.nnm import NNM
from lightning_byz.preaggregators.preaggregator import PreAggregator

__all__ = ["ARC", "NNM", "Bucketing", "Clipping", "PreAggregator"]
