"""Codes: redundant gradients, out of which liars are found and the mean is exact."""

from lightning_byz.codes.code import Code
from lightning_byz.codes.cyclic import Cyclic
from lightning_byz.codes.generators import Polynomials
from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.codes.linear import LinearCode
from lightning_byz.codes.repetition import Repetition
from lightning_byz.codes.solon import Solon

__all__ = ["Code", "Cyclic", "Interleaved", "LinearCode", "Polynomials", "Repetition", "Solon"]
