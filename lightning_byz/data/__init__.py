"""Data of logical workers: partitions."""

from lightning_byz.data.dirichlet import Dirichlet
from lightning_byz.data.everyone import Everyone
from lightning_byz.data.gamma_similarity import GammaSimilarity
from lightning_byz.data.partition import IID, Partition
from lightning_byz.data.sizes import Sizes
from lightning_byz.data.sorted_shards import SortedShards

__all__ = ["IID", "Dirichlet", "Everyone", "GammaSimilarity", "Partition", "Sizes", "SortedShards"]
