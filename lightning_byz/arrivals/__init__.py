"""Arrivals: which workers deliver at each step."""

from lightning_byz.arrivals.arrivals import Arrivals, Schedule
from lightning_byz.arrivals.fixed_delays import FixedDelays
from lightning_byz.arrivals.random_arrivals import RandomArrivals
from lightning_byz.arrivals.synchronous import Synchronous

__all__ = ["Arrivals", "FixedDelays", "RandomArrivals", "Schedule", "Synchronous"]
