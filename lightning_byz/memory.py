"""What a run remembers of one optimizer between steps, by where it lives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_byz.slice import Slice

Vectors = Mapping[str, Tensor | float]
"""By name: vectors of length d, and numbers."""

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sliced:
    """Vectors (s,) and tables (k, s) of the rules' side, at the coordinates of one rank.

    Args:
        values: By name.
        slice: Where these coordinates lie among all; ``None`` where they are all.

    """

    values: Mapping[str, Tensor]
    slice: Slice | None = None

    def map(self, change: Rows, part: Slice | None) -> "Sliced":
        """Change each vector and each row of each table, in an order that is the same on every rank; they lie at ``part`` afterwards."""
        return Sliced({name: _by_row(self.values[name], change) for name in self.values}, part)


@dataclass(frozen=True, eq=False)
class Memory:
    """What a run remembers of one optimizer, as a value.

    A step that is not taken changes ``step`` and ``faults`` and nothing else. Files, slices and layouts treat everything here by its kind: no stage
    is known to them by name.

    Args:
        step: Number of steps so far, taken or not; keys the draws of attacks and rules.
        faults: Number of steps in a row that were not taken because too much weight was broken.
        workers: For each local worker and stage, vectors (d,) and numbers. They move with their worker.
        rules: For each stage, vectors (s,) and tables (k, s) of the rules' side. They move with their coordinates.
        counts: For each kind of event, how often it happened to each worker; alike on all ranks.
        points: Parameter vectors (d,) by step, those that this rank's workers refer to in ``counts["point"]``.

    """

    step: int = 0
    faults: int = 0
    workers: Mapping[int, Mapping[str, Vectors]] = field(default_factory=dict)
    rules: Mapping[str, Sliced] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    points: Mapping[int, Tensor] = field(default_factory=dict)

    def map(self, vectors: Rows, rows: Rows, part: Slice | None, points: Rows | None = None) -> "Memory":
        """Change the workers' vectors, the rules' vectors and rows of tables, and the points; numbers stay as they are.

        Args:
            vectors: Changes a worker's vector (d,).
            rows: Changes a vector (s,), or a row of a table, of the rules' side. Called in the same order on every rank.
            part: Where the rules' coordinates lie afterwards.
            points: Changes a point (d,); as ``vectors`` where not given.

        """
        return replace(
            self,
            workers={
                worker: {stage: map_vectors(values, vectors) for stage, values in stages.items()}
                for worker, stages in self.workers.items()
            },
            rules={stage: self.rules[stage].map(rows, part) for stage in sorted(self.rules)},
            points={step: (points or vectors)(point) for step, point in self.points.items()},
        )


def map_vectors(values: Vectors, change: Rows) -> Vectors:
    """Change the vectors; numbers, and tensors that hold a single one, stay as they are."""
    return {
        name: change(value) if isinstance(value, Tensor) and value.ndim else value for name, value in values.items()
    }


def _by_row(values: Tensor, change: Rows) -> Tensor:
    return change(values) if values.ndim == 1 else torch.stack([change(row) for row in values])
