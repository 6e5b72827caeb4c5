"""What is done to an optimizer's steps, for any torch optimizer, with Lightning or without."""

from lightning_byz.optimizers.anytime import Anytime

__all__ = ["Anytime"]
