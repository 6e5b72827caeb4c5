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
    check_stages([("link", link, Link), ("compressor", compressor, Compressor)])
    if downlink is None or isinstance(downlink, Compressor):
        return None if downlink is None else Downlink(downlink)
    if not isinstance(downlink, Downlink):
        given = f"the class {downlink.__name__}" if isinstance(downlink, type) else repr(downlink)
        raise TypeError(
            f"downlink={given}: give a compressor, e.g. Cast('bfloat16'), or one with a link, e.g. Downlink(TopK(0.05), EF21())."
        )
    check_stages([("downlink.link", downlink.link, Link), ("downlink.compressor", downlink.compressor, Compressor)])
    if "message" in downlink.link.exceptions:
        raise ValueError(
            f"downlink.link={downlink.link!r}: behind it ranks would step on something else than the aggregate: give Direct(), ErrorFeedback(),"
            " EF21() or Diana(), and momentum, if any, in the optimizer."
        )
    return downlink


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
