"""One flat vector for the gradients of an optimizer: names, shapes, dtypes and offsets of its parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector that travels.

    The vector has one dtype, the narrowest that holds every parameter's dtype exactly (bfloat16 and float32 travel as float32), so that a
    distance is over the whole module; each gradient returns in the dtype of its parameter.

    Args:
        names: Unique name per parameter, in the order of the vector.
        shapes: Shape per parameter, as real numbers (a complex parameter has a last axis of two).
        dtype: dtype of the vector.

    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Tensor]]) -> "Layout":
        """Lay out named parameters in the given order."""
        named = list(parameters)
        real = [(name, _real(parameter)) for name, parameter in named]
        dtype = reduce(torch.promote_types, (values.dtype for _, values in real))
        return cls(tuple(name for name, _ in real), tuple(tuple(values.shape) for _, values in real), dtype)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates per parameter."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def total(self) -> int:
        """Number of coordinates of the vector."""
        return sum(self.sizes)

    def flatten(self, gradients: Sequence[Tensor | None], *, out: Tensor, scale: float = 1.0) -> None:
        """Write gradients, times ``scale``, into ``out`` (d,); a missing gradient counts as zero.

        Raises:
            ValueError: If a gradient is sparse.

        """
        for name, gradient, part in zip(self.names, gradients, out.split(self.sizes), strict=True):
            if gradient is None:
                part.zero_()
                continue
            if gradient.is_sparse:
                raise ValueError(
                    f"The gradient of '{name}' is sparse; robust rules need dense rows. Build that layer with sparse=False."
                )
            values = _real(gradient.detach())
            part.view(values.shape).copy_(values)
        if scale != 1.0:
            out.mul_(scale)

    def write(self, vector: Tensor, parameters: Sequence[Tensor], *, used: Sequence[bool], scale: float = 1.0) -> None:
        """Set ``.grad`` of each parameter from ``vector`` (d,), times ``scale``; to ``None`` where no worker used it."""
        for parameter, part, is_used in zip(parameters, vector.split(self.sizes), used, strict=True):
            if not is_used:
                parameter.grad = None
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            target = _real(parameter.grad)
            target.copy_(part.view(target.shape))
            if scale != 1.0:
                target.mul_(scale)

    def realign(self, vector: Tensor, old: "Layout") -> Tensor:
        """Carry a vector of another layout over by name; parameters that are new or of another shape start from zero."""
        known = {
            name: (shape, part)
            for name, shape, part in zip(old.names, old.shapes, vector.split(old.sizes), strict=True)
        }
        result = vector.new_zeros(self.total)
        for name, shape, part in zip(self.names, self.shapes, result.split(self.sizes), strict=True):
            if name in known and known[name][0] == shape:
                part.copy_(known[name][1])
        return result


def _real(values: Tensor) -> Tensor:
    """View a complex tensor as real, with a last axis of two."""
    return torch.view_as_real(values) if values.is_complex() else values
