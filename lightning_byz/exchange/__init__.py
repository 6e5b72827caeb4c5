"""Exchanges: the only collectives of the numeric path."""

from lightning_byz.exchange.all_gather import AllGather
from lightning_byz.exchange.all_to_all import AllToAll
from lightning_byz.exchange.exchange import Delivered, Exchange, Wire
from lightning_byz.exchange.local import Local
from lightning_byz.exchange.placement import Placement

__all__ = ["AllGather", "AllToAll", "Delivered", "Exchange", "Local", "Placement", "Wire"]
