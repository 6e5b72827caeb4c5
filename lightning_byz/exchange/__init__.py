"""Exchanges: the only collectives of the numeric path."""

from lightning_byz.exchange.all_to_all import AllToAll
from lightning_byz.exchange.exchange import Delivery, Exchange
from lightning_byz.exchange.local import Local
from lightning_byz.exchange.placement import Placement

__all__ = ["AllToAll", "Delivery", "Exchange", "Local", "Placement"]
