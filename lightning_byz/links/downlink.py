"""How the aggregate comes back to the workers."""

from dataclasses import dataclass, field

from lightning_byz.compressors import Compressor
from lightning_byz.links.direct import Direct
from lightning_byz.links.link import Link


@dataclass(frozen=True)
class Downlink:
    """The way of the aggregate from the rules to all ranks: a compressor, and a link whose sending end is at the rules.

    Every rank steps on what it has read, so parameters stay equal; rules that read the last aggregate read that too.

    Args:
        compressor: What makes bytes of each rank's part of the aggregate.
        link: What is compressed of it. ``EF21()`` sends differences from a mirror that all ranks keep (EF21-BC).

    References:
        Fatkhullin, Sokolov, Gorbunov, Li, Richtarik. EF21 with Bells & Whistles: Practical Algorithmic Extensions of Modern Error Feedback.
            2021, arXiv 2110.03294.

    Example:
        >>> from lightning_byz.compressors import TopK
        >>> from lightning_byz.links import EF21
        >>> Downlink(TopK(0.05), EF21()).link
        EF21()

    """

    compressor: Compressor
    link: Link = field(default_factory=Direct)
