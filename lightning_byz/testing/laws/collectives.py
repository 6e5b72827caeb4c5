"""What every exchange keeps to in its small collectives: what torch.distributed means by their names, without writing to what is given."""

import torch
from torch import Tensor

from lightning_byz.exchange import Exchange
from lightning_byz.testing.case import Case, require, require_bits
from lightning_byz.testing.law import law
from lightning_byz.testing.opened import random_bits
from lightning_byz.testing.world import on_every_rank, world_of

_SHAPES = [(5,), (), (3, 2), (0,), (1,), (700,)]
_KINDS = [
    torch.float32,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.float64,
    torch.float16,
    torch.uint8,
    torch.int32,
]


def _tensor(case: Case, rank: int) -> Tensor:
    """Each rank's own tensor, of one shape and dtype; every rank draws all of them."""
    shape, dtype = _SHAPES[case.seed % len(_SHAPES)], _KINDS[case.seed % len(_KINDS)]
    transposed = case.chance(0.5)
    case.note(shape=shape, dtype=dtype, transposed=transposed and len(shape) == 2)
    own = [random_bits(case, *shape, dtype=dtype) for _ in range(world_of(case).ranks)][rank]
    return (own.T.contiguous().T if transposed and own.ndim == 2 else own).to(case.settings["device"])


@law("all_reduce gives every rank the elementwise sum", part=0.2)
@on_every_rank
def exchange_sums(exchange: Exchange, case: Case) -> None:
    """Of whole numbers of any shape, without writing to them."""
    world, shape = world_of(case), _SHAPES[case.seed % len(_SHAPES)]
    case.note(shape=shape)
    counts = torch.randint(-(2**40), 2**40, (world.ranks, *shape), generator=case.generator).to(case.settings["device"])
    own = counts[world.rank].clone()
    result = exchange.all_reduce(own)
    require_bits(result, counts.sum(0), "the sum over ranks")
    require_bits(own, counts[world.rank], "the counts that were given, afterwards")


@law("broadcast gives every rank the values of rank 0", part=0.2)
@on_every_rank
def exchange_broadcast(exchange: Exchange, case: Case) -> None:
    """Of any dtype and shape, to the bit, without writing to the tensors of others."""
    world = world_of(case)
    generator = case.generator.get_state()
    first = _tensor(case, 0)
    case.generator.set_state(generator)
    own = _tensor(case, world.rank)
    kept = own.clone()
    result = exchange.broadcast(own)
    require_bits(result, first, "what rank 0 has")
    require_bits(own, kept, "the tensor that was given, afterwards")


@law("gather_to_first brings rank 0 the tensor of one rank, on the CPU, and others nothing", part=0.3)
@on_every_rank
def exchange_first(exchange: Exchange, case: Case) -> None:
    """Of any dtype and shape, to the bit; ranks that are not asked may have one too."""
    world = world_of(case)
    host, everyone = case.whole(0, world.ranks - 1), case.chance(0.5)
    generator = case.generator.get_state()
    expected = _tensor(case, host)
    case.generator.set_state(generator)
    own = _tensor(case, world.rank) if everyone or world.rank == host else None
    kept = None if own is None else own.clone()
    case.note(host=host, everyone=everyone)
    result = exchange.gather_to_first(own, host=host, like=torch.zeros_like(expected))
    if own is not None and kept is not None:
        require_bits(own, kept, "the tensor that was given, afterwards")
    if world.rank != 0:
        require(result is None, "something came to a rank that is not the first")
        return
    require(result is not None, "nothing came to rank 0")
    if result is not None:
        require(result.device.type == "cpu", f"what came to rank 0 is on {result.device}")
        require_bits(result, expected.cpu(), f"what rank {host} has")
