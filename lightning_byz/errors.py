"""Errors and warnings of the library.

::

    Exception
    ├── ValueError
    │   ├── ToleranceError     f is too large for this rule and these weights
    │   └── DamagedCheckpoint  a file's bytes are not those that were saved
    └── RuntimeError
        ├── TooManyFaults      more weight is broken than f allows
        ├── TooManyLiars       coded rows fit no message with the liars that the code corrects
        └── RanksDrifted       parameters differ between ranks
"""

import warnings
from collections.abc import Sequence

_WARNED: set[str] = set()


class ToleranceError(ValueError):
    """A rule was asked to tolerate what it cannot: ``f`` is too large, or the weights do not suit it."""


class DamagedCheckpoint(ValueError):
    """A checkpoint is empty, cut short, or differs in some bit from what was saved."""


class TooManyFaults(RuntimeError):
    """More weight is visibly broken than ``f`` allows, so the assumption behind every rule is gone."""


class TooManyLiars(RuntimeError):
    """More workers of a group lied than its code corrects, as far as that can be seen.

    Args:
        message: What was found.
        workers: The workers of the groups in which it was.
        broken: Those of them whose rows are not finite.
        liars: Who lied in the other groups.

    """

    def __init__(
        self,
        message: str,
        *,
        workers: Sequence[int] = (),
        broken: Sequence[int] = (),
        liars: Sequence[int] = (),
    ) -> None:
        super().__init__(message)
        self.workers, self.broken, self.liars = tuple(workers), tuple(broken), tuple(liars)


class RanksDrifted(RuntimeError):
    """Ranks no longer train the same parameters."""


def warn_once(message: str) -> None:
    """Warn with ``message`` the first time this process says it, then stay silent."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)
