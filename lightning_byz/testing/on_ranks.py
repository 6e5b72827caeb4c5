"""The contract of exchanges, on the ranks of whatever world there is."""

from collections.abc import Sequence

import torch

from lightning_byz.exchange import Exchange
from lightning_byz.testing.check import chosen_laws, require_kind
from lightning_byz.testing.laws import EXCHANGE_LAWS


def check_exchange(
    exchange: Exchange,
    *,
    workers: int = 9,
    cases: int = 100,
    seed: int = 0,
    laws: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Check that an exchange brings messages to the rules as they were written, and the aggregate back to every rank.

    In a process without a process group it is checked alone; with one, every rank must call this with the same arguments. Every worker lives on one
    rank; slices are runs of whole blocks that cover all coordinates; rows arrive to the bit, in the order asked for; what is counted is that of whole
    rows; every rank gets the same whole; wires do not disturb each other; received bytes are counted; and the small collectives do what
    torch.distributed means by their names. What breaks on one rank is an error on all. A rank that waits for a message that nobody sends waits for
    the timeout of the process group: choose a short one.

    Args:
        exchange: An instance, alike on all ranks.
        workers: The largest number of workers, at least one per rank.
        cases: As for :func:`check_aggregator`.
        seed: Likewise.
        laws: Likewise.
        device: Where messages lie: one that the process group can send from.

    Raises:
        AssertionError: For the first case that breaks a law. It names the law, the exchange, the rank and the case, and what was seen.
        TypeError: If ``exchange`` is no exchange.
        ValueError: If ``cases`` is not positive, ``laws`` names none of them, or the exchange cannot serve so many ranks or workers.

    Example:
        >>> from lightning_byz.exchange import Delivered, Local
        >>> check_exchange(Local(), cases=5)
        >>> class Sorted(Local):
        ...     def open(self, *arguments, **rest):
        ...         wire = super().open(*arguments, **rest)
        ...         deliver = wire.deliver
        ...         wire.deliver = lambda due, facts: deliver(sorted(due), facts)
        ...         return wire
        >>> check_exchange(Sorted(), laws=["exchange_rows"])
        Traceback (most recent call last):
        ...
        AssertionError: Sorted() breaks the law 'exchange_rows': rows arrive as they were written, to the bit, in the order asked for
          case: ...
          seen: the rows of workers ...
          this case alone: laws=['exchange_rows'], cases=1, seed=..., workers=9
    """
    require_kind(exchange, Exchange, cases)
    chosen = chosen_laws(EXCHANGE_LAWS, laws)
    exchange.place(workers)
    for law in chosen:
        law.hold(exchange, cases, seed, workers, settings={"device": torch.device(device)})
