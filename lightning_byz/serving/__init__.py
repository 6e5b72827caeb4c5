"""Serving: workers at their own pace, each a process, and the server that makes updates of what they send."""

from lightning_byz.serving.engine import Engine, Seat
from lightning_byz.serving.job import Computed, Job
from lightning_byz.serving.one_row import OneByOne
from lightning_byz.serving.processes import Processes
from lightning_byz.serving.ray_engine import Ray, RayEngine
from lightning_byz.serving.service import Service

__all__ = ["Computed", "Engine", "Job", "OneByOne", "Processes", "Ray", "RayEngine", "Seat", "Service"]
