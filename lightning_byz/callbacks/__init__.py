"""Callbacks that show what the strategy saw."""

from .worker_monitor import WorkerMonitor

__all__ = ["WorkerMonitor"]
