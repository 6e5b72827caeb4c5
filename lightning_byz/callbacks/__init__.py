"""Callbacks that show what the strategy saw."""

from .site_table import SiteTable
from .worker_monitor import WorkerMonitor

__all__ = ["SiteTable", "WorkerMonitor"]
