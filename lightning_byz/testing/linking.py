"""The contract of links, for links of your own."""

from collections.abc import Sequence

from lightning_byz.compressors import Compressor
from lightning_byz.links import Link
from lightning_byz.testing.check import chosen_laws, require_kind
from lightning_byz.testing.laws import LINK_LAWS


def check_link(
    link: Link,
    compressor: Compressor | None = None,
    *,
    cases: int = 100,
    seed: int = 0,
    laws: Sequence[str] | None = None,
) -> None:
    """Check that the two ends of a link agree, treat coordinates alike, and lose nothing that the compressor does not.

    Slices, several rows at once and another order give the bits of the whole; where both ends remember a vector, it is the same to the bit;
    arguments are not written to, and equal ones give equal bits; finite messages give finite rows; and behind ``Identity`` the rules see the
    message. ``link.exceptions`` names what its definition does not keep.

    Args:
        link: An instance.
        compressor: What makes bytes of what is sent; those of this library that suit the link if none is given.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the link and the case, and what was seen.
        TypeError: If ``link`` is no link, or ``compressor`` no compressor.
        ValueError: If ``cases`` is not positive, or ``laws`` names none of them.

    Example:
        >>> from lightning_byz.links import EF21, Received
        >>> check_link(EF21(), cases=5)
        >>> class Halfway(EF21):
        ...     def receive(self, state, decoded):
        ...         return Received(state + decoded, state + decoded / 2)
        >>> check_link(Halfway(), cases=5)
        Traceback (most recent call last):
        ...
        AssertionError: Halfway() breaks the law 'link_mirrors': both ends remember the same bits
          case: ...
          seen: what the worker's end remembers after message 0, and the rules' end beside it: ...
          this case alone: laws=['link_mirrors'], cases=1, seed=0
    """
    require_kind(link, Link, cases)
    if compressor is not None:
        require_kind(compressor, Compressor, cases)
    for law in chosen_laws(LINK_LAWS, laws):
        law.hold(link, cases, seed, settings={"compressor": compressor})
