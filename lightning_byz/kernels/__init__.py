"""Arithmetic on the rows of a stack: order statistics along the workers, sums in blocks of coordinates, shares of weight."""

from lightning_byz.blocks import block_size
from lightning_byz.kernels.around import mean_around_median
from lightning_byz.kernels.aside import Aside, answered
from lightning_byz.kernels.blocks import (
    cross_products,
    majority_signs,
    moments,
    saturate,
    scaled_rows,
    square_sums,
    weighted_rows,
)
from lightning_byz.kernels.coded import differing, mixed_pieces, projected_pieces
from lightning_byz.kernels.medians import coordinate_median, trimmed_mean
from lightning_byz.kernels.neighbours import neighbour_scores
from lightning_byz.kernels.networks import Comparator, network
from lightning_byz.kernels.sampled import sampled_products
from lightning_byz.kernels.shares import SLIVER, minority, mixed_distances, nearest_shares, symmetric
from lightning_byz.kernels.spectral import principal_spread
from lightning_byz.kernels.subsets import smallest_diameter, smallest_spread
from lightning_byz.kernels.usable import unusable

__all__ = [
    "SLIVER",
    "Aside",
    "Comparator",
    "answered",
    "block_size",
    "coordinate_median",
    "cross_products",
    "differing",
    "majority_signs",
    "mean_around_median",
    "minority",
    "mixed_distances",
    "mixed_pieces",
    "moments",
    "nearest_shares",
    "neighbour_scores",
    "network",
    "principal_spread",
    "projected_pieces",
    "sampled_products",
    "saturate",
    "scaled_rows",
    "smallest_diameter",
    "smallest_spread",
    "square_sums",
    "symmetric",
    "trimmed_mean",
    "unusable",
    "weighted_rows",
]
