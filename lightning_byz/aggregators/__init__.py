"""Aggregators: from the messages of one step to one vector."""

from lightning_byz.aggregators.aggregator import Aggregator, CoordinateRule, RowAverage
from lightning_byz.aggregators.bulyan import Bulyan
from lightning_byz.aggregators.caf import CAF
from lightning_byz.aggregators.centered_clipping import CenteredClipping
from lightning_byz.aggregators.coordinate_median import CoordinateMedian
from lightning_byz.aggregators.ctma import CTMA
from lightning_byz.aggregators.dnc import DnC
from lightning_byz.aggregators.geometric_median import GeometricMedian
from lightning_byz.aggregators.krum import Krum
from lightning_byz.aggregators.mda import MDA
from lightning_byz.aggregators.mean import Mean
from lightning_byz.aggregators.mean_around_median import MeanAroundMedian
from lightning_byz.aggregators.monna import MoNNA
from lightning_byz.aggregators.multi_krum import MultiKrum
from lightning_byz.aggregators.sign_majority import SignMajority
from lightning_byz.aggregators.smea import SMEA
from lightning_byz.aggregators.trimmed_mean import TrimmedMean

__all__ = [
    "CAF",
    "CTMA",
    "MDA",
    "SMEA",
    "Aggregator",
    "Bulyan",
    "CenteredClipping",
    "CoordinateMedian",
    "CoordinateRule",
    "DnC",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MeanAroundMedian",
    "MoNNA",
    "MultiKrum",
    "RowAverage",
    "SignMajority",
    "TrimmedMean",
]
