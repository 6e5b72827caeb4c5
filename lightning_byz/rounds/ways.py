"""The ways of messages to the rules and of the aggregate back, as users say them."""

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_byz.compressors import Compressor
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.flat import Layout
from lightning_byz.links import Downlink, Link
from lightning_byz.rounds.arguments import check_stages
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.trained import trained_by


def checked_ways(link: Link, compressor: Compressor, downlink: Compressor | Downlink | None) -> Downlink | None:
    """Refuse what is no link or compressor, and return the way back.

    Args:
        link: As users give it.
        compressor: Likewise.
        downlink: Likewise.

    """
    back = Downlink(downlink) if isinstance(downlink, Compressor) else downlink
    check_stages([("link", link, Link), ("compressor", compressor, Compressor)])
    check_stages(("downlink", stage, Downlink) for stage in [back] if stage is not None)
    if back is not None:
        check_stages([("downlink.link", back.link, Link), ("downlink.compressor", back.compressor, Compressor)])
    return back


def check_parameters(plan: Plan, optimizers: Sequence[Optimizer], exchange: Exchange, placement: Placement) -> None:
    """Refuse parameters that cannot be compressed.

    Args:
        plan: What steps are made of.
        optimizers: What trains.
        exchange: How messages reach the rules.
        placement: Which workers live where.

    Raises:
        ValueError: If a link and its compressor do not go together, or the parameters do not suit a compressor.

    """
    for parameters in map(trained_by, optimizers):
        if parameters:
            shapes = Layout.of((str(place), one) for place, one in enumerate(parameters)).shapes
            plan.channel().check(shapes, sliced=exchange.slices and placement.ranks > 1)
