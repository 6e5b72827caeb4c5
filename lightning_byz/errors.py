"""Errors and warnings of the library.

::

    Exception
    ├── ValueError
    │   ├── ToleranceError     f is too large for this rule and these weights
    │   └── DamagedCheckpoint  a file's bytes are not those that were saved
    └── RuntimeError
        ├── TooManyFaults      more weight is broken than f allows
        └── RanksDrifted       parameters differ between ranks
"""

import warnings

_WARNED: set[str] = set()


class ToleranceError(ValueError):
    """A rule was asked to tolerate what it cannot: ``f`` is too large, or the weights do not suit it."""


class DamagedCheckpoint(ValueError):
    """A checkpoint is empty, cut short, or differs in some bit from what was saved."""


class TooManyFaults(RuntimeError):
    """More weight is visibly broken than ``f`` allows, so the assumption behind every rule is gone."""


class RanksDrifted(RuntimeError):
    """Ranks no longer train the same parameters."""


def warn_once(message: str) -> None:
    """Warn with ``message`` the first time this process says it, then stay silent."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)
