"""One flat vector for the gradients of an optimizer: names, shapes, dtypes and offsets of its parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from lightning_byz.inside_torch import copy_each, parts_like, zero_each


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector that travels.

    The vector has one dtype, the narrowest that holds every parameter's dtype exactly (bfloat16 and float32 travel as
    float32), so that a distance is over the whole module; each gradient returns in the dtype of its parameter.

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

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates per parameter."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def total(self) -> int:
        """Number of coordinates of the vector."""
        return sum(self.sizes)

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return the part of ``vector`` (d,) that belongs to each parameter, in its shape, sharing memory."""
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def values(self, vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return what ``vector`` (d,) holds of each parameter, in its dtype and strides; views of the vector where these are its own."""
        values = []
        for part, parameter in zip(self.views(vector), parameters, strict=True):
            if parameter.dtype == vector.dtype and parameter.is_contiguous():
                values.append(part)
            else:
                values.append(torch.empty_like(parameter, requires_grad=False))
                _real(values[-1]).copy_(part)
        return values

    def flatten(self, gradients: Sequence[Tensor | None], *, out: Sequence[Tensor]) -> None:
        """Write gradients into ``out``, the :meth:`views` of a vector; a missing gradient counts as zero.

        Raises:
            ValueError: If a gradient is sparse.

        """
        present = [(part, one) for part, one in zip(out, gradients, strict=True) if one is not None]
        if any([gradient.is_sparse for _, gradient in present]):  # noqa: C419 - many small parameters make generators dear
            name = next(
                name for name, one in zip(self.names, gradients, strict=True) if one is not None and one.is_sparse
            )
            raise ValueError(
                f"The gradient of '{name}' is sparse; robust rules need dense rows. Build that layer with sparse=False."
            )
        with torch.no_grad():
            if len(present) < len(gradients):
                zero_each([part for part, one in zip(out, gradients, strict=True) if one is None])
            if present:
                copy_each(
                    [part for part, _ in present],
                    [torch.view_as_real(one) if one.is_complex() else one for _, one in present],
                )

    def write(
        self, vector: Tensor, parameters: Sequence[Tensor], *, used: Sequence[int], scale: float | None = None
    ) -> None:
        """Set ``.grad`` of each parameter from ``vector`` (d,), times ``scale``; to ``None`` where no worker used it.

        Where a parameter has the vector's dtype and is contiguous, its ``.grad`` is a view of the vector, as under
        ``DDPStrategy(gradient_as_bucket_view=True)``: it is valid until the next backward pass. Others get a copy with their strides.
        """
        if scale is not None and scale != 1.0:
            vector.mul_(scale)
        alike = [parameter.dtype == vector.dtype and parameter.is_contiguous() for parameter in parameters]
        parts = parts_like(vector, parameters) if all(alike) and 0 not in self.sizes else self.views(vector)
        for parameter, part, count, viewed in zip(parameters, parts, used, alike, strict=True):
            if not count:
                parameter.grad = None
            elif viewed:
                parameter.grad = part
            else:
                parameter.grad = torch.empty_like(parameter)
                _real(parameter.grad).copy_(part)

    def realign(self, vector: Tensor, old: "Layout", *, start: Tensor | None = None) -> Tensor:
        """Carry a vector of another layout over by name.

        Args:
            vector: It has the coordinates of ``old``.
            old: The other layout.
            start: What parameters that are new, or of another shape, start from; zero where not given.

        """
        known = dict(zip(old.names, old.views(vector), strict=True))
        result = vector.new_zeros(self.total) if start is None else start.to(vector.dtype, copy=True)
        for name, part in zip(self.names, self.views(result), strict=True):
            if name in known and known[name].shape == part.shape:
                part.copy_(known[name])
        return result


def _real(values: Tensor) -> Tensor:
    """View a complex tensor as real, with a last axis of two."""
    return torch.view_as_real(values) if values.is_complex() else values
