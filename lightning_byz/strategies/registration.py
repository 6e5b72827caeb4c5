"""Make the strategy known to Lightning by name: ``Trainer(strategy="robust")`` after ``import lightning_byz.strategies``."""

from lightning.pytorch.strategies import StrategyRegistry

from lightning_byz.aggregators import GeometricMedian
from lightning_byz.strategies.robust import RobustStrategy
from lightning_byz.versions import warn_if_untested

NAME = "robust"

if NAME not in StrategyRegistry:
    StrategyRegistry.register(
        NAME,
        RobustStrategy,
        description="geometric median of one worker per rank, tolerating as many Byzantine workers as it can",
        f="max",
        aggregator=GeometricMedian(),
    )
warn_if_untested()
