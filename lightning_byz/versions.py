"""Which torch and Lightning this package has been tested with.

Nothing is capped, because a library must not downgrade its user's torch; but the strategy touches attributes of Lightning that are not public,
so outside the tested versions it says so, once.
"""

from importlib.metadata import version

from .errors import warn_once

TESTED = {"torch": ("2.13",), "lightning": ("2.6",)}


def untested() -> list[str]:
    """Return the installed packages whose minor version is not among those tested, as ``name version``."""
    installed = {name: version(name) for name in TESTED}
    return [f"{name} {full}" for name, full in installed.items() if _minor(full) not in TESTED[name]]


def warn_if_untested() -> None:
    """Warn once per process when torch or Lightning has a version that the tests have not seen."""
    if found := untested():
        tested = ", ".join(f"{name} {' or '.join(minors)}" for name, minors in TESTED.items())
        warn_once(
            f"lightning_byz has been tested with {tested}, and finds {', '.join(found)}; "
            "if a run misbehaves, install the versions of constraints.txt before reporting it."
        )


def _minor(full: str) -> str:
    return ".".join(full.split(".")[:2])
