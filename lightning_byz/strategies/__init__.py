"""Lightning strategies."""

from lightning_byz.strategies import registration as registration
from lightning_byz.strategies.async_robust import AsyncRobustStrategy
from lightning_byz.strategies.robust import RobustStrategy

__all__ = ["AsyncRobustStrategy", "RobustStrategy"]
