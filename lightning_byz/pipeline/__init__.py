"""The chain of one step, its state and its report."""

from lightning_byz.pipeline.pipeline import Pipeline
from lightning_byz.pipeline.report import Report
from lightning_byz.pipeline.state import Carried, PipelineState

__all__ = ["Carried", "Pipeline", "PipelineState", "Report"]
