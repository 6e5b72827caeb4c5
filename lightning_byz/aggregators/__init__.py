"""Aggregators: from the messages of one step to one vector."""

from lightning_byz.aggregators.aggregator import Aggregator, RowAverage
from lightning_byz.aggregators.coordinate_median import CoordinateMedian
from lightning_byz.aggregators.ctma import CTMA
from lightning_byz.aggregators.geometric_median import GeometricMedian
from lightning_byz.aggregators.krum import Krum
from lightning_byz.aggregators.mean import Mean
from lightning_byz.aggregators.trimmed_mean import TrimmedMean

__all__ = [
    "CTMA",
    "Aggregator",
    "CoordinateMedian",
    "GeometricMedian",
    "Krum",
    "Mean",
    "RowAverage",
    "TrimmedMean",
]
