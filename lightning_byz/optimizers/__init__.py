"""What is done to an optimizer's steps, for any torch optimizer, with Lightning or without."""

from lightning_byz.optimizers.anytime import Anytime
from lightning_byz.optimizers.robust_optimizer import RobustOptimizer

__all__ = ["Anytime", "RobustOptimizer"]
