"""What a worker and the server must run alike."""

from importlib.metadata import version

from lightning_byz.random import derive

FORMAT = 1
"""Of what workers and server say to each other."""
LIBRARIES = ("torch", "lightning")
"""Those whose versions must be the same at both."""


def libraries_digest() -> int:
    """Return a digest of the versions that are installed here."""
    return derive(FORMAT, *map(version, LIBRARIES))
