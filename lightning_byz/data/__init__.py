"""Data of logical workers: partitions."""

from lightning_byz.data.partition import IID, Partition

__all__ = ["IID", "Partition"]
