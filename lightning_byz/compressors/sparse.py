"""Reading entries of some coordinates, whoever wrote them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lightning_byz.compressors.wire import from_bytes, refused

INDEX = torch.int32


def read_sparse(
    part: UInt8[Tensor, " b"], runs: Sequence[tuple[int, int]], *, out: Float[Tensor, " s"]
) -> Bool[Tensor, ""]:
    """Write entries of values and indices.

    Args:
        part: The bytes.
        runs: Up to which coordinate each group goes, and how many of it there may be.
        out: Where to write.

    """
    each = out.element_size() + INDEX.itemsize
    count, rest = divmod(part.numel(), each)
    if rest or count > sum(limit for _, limit in runs):
        return refused(out)
    values = from_bytes(part, 0, count, out.dtype)
    index = from_bytes(part, count * out.element_size(), count, INDEX).long()
    inside = (index >= 0).all() & (index < len(out)).all() & (index[1:] > index[:-1]).all()
    if len(runs) > 1:
        ends, limits = (torch.tensor(column, device=out.device) for column in zip(*runs, strict=True))
        found = torch.zeros_like(ends).scatter_add_(
            0, torch.searchsorted(ends, index, right=True).clamp(max=len(runs) - 1), torch.ones_like(index)
        )
        inside &= (found <= limits).all()
    return write(values, index.clamp(0, max(len(out) - 1, 0)), inside & values.isfinite().all(), out)


def write(
    values: Float[Tensor, " k"], index: Int64[Tensor, " k"], valid: Bool[Tensor, ""], out: Float[Tensor, " s"]
) -> Bool[Tensor, ""]:
    """Write ``values`` at ``index`` and zeros elsewhere; zeros throughout unless ``valid``, which is returned."""
    out.zero_().index_copy_(0, index, values.masked_fill(~valid, 0.0))
    return valid
