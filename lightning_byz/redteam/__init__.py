"""``lightning-byz redteam``: the attack, and its strength, that hurt a user's own run most."""

from lightning_byz.redteam.command import main

__all__ = ["main"]
