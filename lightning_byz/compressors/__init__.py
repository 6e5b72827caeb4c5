"""Compressors: what makes a message smaller on its way."""

from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Dense, Entries, Packed, Sparse
from lightning_byz.compressors.identity import Identity
from lightning_byz.compressors.random_k import RandomK
from lightning_byz.compressors.scaled_sign import ScaledSign
from lightning_byz.compressors.top_k import TopK

__all__ = [
    "Compressor",
    "Coordinates",
    "Dense",
    "Entries",
    "Identity",
    "Packed",
    "RandomK",
    "ScaledSign",
    "Sparse",
    "TopK",
]
