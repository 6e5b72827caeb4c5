"""Compressors: what makes a message smaller on its way."""

from lightning_byz.compressors.cast import Cast
from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Dense, Entries, Packed, Sparse
from lightning_byz.compressors.identity import Identity
from lightning_byz.compressors.low_rank import LowRank
from lightning_byz.compressors.quantize import Quantize
from lightning_byz.compressors.random_k import RandomK
from lightning_byz.compressors.scaled_sign import ScaledSign
from lightning_byz.compressors.top_k import TopK

__all__ = [
    "Cast",
    "Compressor",
    "Coordinates",
    "Dense",
    "Entries",
    "Identity",
    "LowRank",
    "Packed",
    "Quantize",
    "RandomK",
    "ScaledSign",
    "Sparse",
    "TopK",
]
