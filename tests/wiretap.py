"""Writes down every tensor that this rank sends in a collective, whoever calls it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

ONE_PLACE = ("allreduce", "allreduce_coalesced", "reduce", "send")
"""Collectives whose first argument is what this rank sends."""
TWO_PLACES = (
    "_allgather_base", "_reduce_scatter_base", "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced",
    "alltoall", "alltoall_base", "gather", "reduce_scatter", "reduce_scatter_tensor_coalesced", "scatter",
)  # fmt: skip
"""Collectives whose first argument is room for what comes in, and the second what this rank sends."""
OBJECTS = ("all_gather_object", "gather_object", "scatter_object_list", "send_object_list")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)


@dataclass
class Heard:
    """What this rank has sent."""

    tensors: list[Tensor] = field(default_factory=list)
    calls: int = 0
    """Collectives, of whoever sends in them."""
    objects: list[Any] = field(default_factory=list)
    """What rank 0 has broadcast as an object, and is in ``tensors`` too as bytes."""

    def contains(self, value: Tensor) -> bool:
        """Whether some tensor holds these numbers, one after the other, in a usual dtype."""
        return any(
            bytes_of(sent) in self.bytes for sent in map(value.to, DTYPES) if torch.equal(sent.to(value.dtype), value)
        )

    @cached_property
    def bytes(self) -> bytes:
        """All that has travelled; ask when it has."""
        return b"|".join(map(bytes_of, self.tensors))


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@contextmanager
def wiretap() -> Iterator[Heard]:
    """Yield what is heard; refuse collectives of objects, but for rank 0's broadcasts, which Lightning makes."""
    heard = Heard()

    def listening(call, place):
        def tapped(group, *args, **kwargs):
            heard.calls += 1
            assert not kwargs or len(args) > place, "the sender's tensors are looked for by their place"
            heard.tensors.extend(tensors(args[place]))
            return call(group, *args, **kwargs)

        return tapped

    def from_root(call):
        def tapped(group, sent, options, *rest):
            heard.calls += 1
            root = getattr(
                options, "rootRank", rest[0] if rest else 0
            )  # of the group's method, else of the coalesced one
            if root == group.rank():
                heard.tensors.extend(tensors(sent))
            return call(group, sent, options, *rest)

        return tapped

    def noted(call):
        def tapped(objects, src=None, *args, **kwargs):
            assert src == 0, "only rank 0 is trusted with objects"
            if dist.get_rank() == 0:
                heard.objects.extend(objects)
            return call(objects, src, *args, **kwargs)

        return tapped

    def refused(*args, **kwargs):
        raise AssertionError("an object would travel")

    with ExitStack() as stack:
        for place, names in ((0, ONE_PLACE), (1, TWO_PLACES)):
            for name in names:
                call = getattr(dist.ProcessGroup, name)
                stack.enter_context(patch.object(dist.ProcessGroup, name, listening(call, place)))
        stack.enter_context(patch.object(dist.ProcessGroup, "broadcast", from_root(dist.ProcessGroup.broadcast)))
        for module in (dist, dist.distributed_c10d):
            if hasattr(module, "_broadcast_coalesced"):
                stack.enter_context(
                    patch.object(module, "_broadcast_coalesced", from_root(module._broadcast_coalesced))
                )
            stack.enter_context(patch.object(module, "broadcast_object_list", noted(module.broadcast_object_list)))
            for name in OBJECTS:
                stack.enter_context(patch.object(module, name, refused))
        yield heard


def tensors(value: Any) -> list[Tensor]:
    """Return copies of the tensors in nested lists."""
    if isinstance(value, Tensor):
        return [value.detach().cpu().clone()]
    return [one for part in value for one in tensors(part)] if isinstance(value, list | tuple) else []
