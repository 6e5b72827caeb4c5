"""Arithmetic on the rows of a stack: order statistics along the workers, sums in blocks of coordinates, shares of weight."""

from lightning_byz.kernels.blocks import block_size, cross_products, moments, saturate, square_sums, unusable, weighted_rows
from lightning_byz.kernels.medians import coordinate_median, trimmed_mean
from lightning_byz.kernels.networks import Comparator, network
from lightning_byz.kernels.shares import SLIVER, minority, mixed_distances, nearest_shares, symmetric

__all__ = [
    "SLIVER",
    "Comparator",
    "block_size",
    "coordinate_median",
    "cross_products",
    "minority",
    "mixed_distances",
    "moments",
    "nearest_shares",
    "network",
    "saturate",
    "square_sums",
    "symmetric",
    "trimmed_mean",
    "unusable",
    "weighted_rows",
]
