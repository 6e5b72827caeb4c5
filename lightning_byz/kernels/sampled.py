"""Products of rows over some of their coordinates."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.blocks import cross_products
from lightning_byz.kernels.medians import coordinate_median


def sampled_products(
    vectors: Float[Tensor, "n d"], masses: tuple[float, ...], columns: Int64[Tensor, " k"], blocks: Blocks
) -> Float64[Tensor, "blocks n n"]:
    """Gram matrix of some columns about their weighted median, one partial sum per block.

    Args:
        vectors: The rows.
        masses: Their weights.
        columns: Ascending, and counted over all coordinates, of which ``vectors`` may be a slice.
        blocks: Where the slice lies.
    """
    own = columns.cpu() - blocks.start
    own = own[(own >= 0) & (own < vectors.shape[1])]
    ends = torch.searchsorted(own, torch.tensor([high for _, high in blocks.bounds], dtype=own.dtype)).tolist()
    rows = vectors[:, own.to(vectors.device)]
    return cross_products(rows, coordinate_median(rows, masses), blocks.holding(ends), together=False)
