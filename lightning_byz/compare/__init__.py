"""``lightning-byz compare``: a base config and a grid over it, every cell a config of its own."""

from lightning_byz.compare.cells import Cell, Variant
from lightning_byz.compare.command import main
from lightning_byz.compare.grid import Axis, Grid, GridMistake

__all__ = ["Axis", "Cell", "Grid", "GridMistake", "Variant", "main"]
