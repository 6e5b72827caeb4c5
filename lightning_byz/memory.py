"""What a run remembers of one optimizer between steps, by where it lives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_byz.slice import Slice

Vectors = Mapping[str, Tensor | float]
"""By name: vectors of length d, and numbers."""

NOWHERE = -1
"""The step of the point of a worker that has no adopted estimate."""

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

    def point(self, worker: int) -> Tensor | None:
        """Return the parameters at which a local worker's adopted estimate was made; ``None`` as long as there is none."""
        return self.points.get(self.counts["point"][worker]) if "point" in self.counts else None

    def workers_after(self, *left: Mapping[int, Mapping[str, Vectors]]) -> dict[int, Mapping[str, Vectors]]:
        """Return what local workers remember, by stage, once these stages of them are others."""
        workers = dict(self.workers)
        for stages in left:
            workers.update((worker, {**workers.get(worker, {}), **own}) for worker, own in stages.items())
        return workers

    def points_after(
        self, accepted: Sequence[bool], reached: Mapping[int, Tensor | None], local: Sequence[int]
    ) -> tuple[list[int], Mapping[int, Tensor]]:
        """Return each worker's step of its point, and the points that local workers refer to, after a step at which some were accepted.

        Args:
            accepted: For each worker.
            reached: The point at which each local worker that was accepted computed; it is the same for all.
            local: The workers of this rank.

        """
        before = self.counts.get("point", [NOWHERE] * len(accepted))
        steps = [self.step if here else known for here, known in zip(accepted, before, strict=True)]
        points = dict(self.points)
        points.update((self.step, point) for worker, point in reached.items() if accepted[worker] and point is not None)
        return steps, {step: points[step] for step in sorted({steps[worker] for worker in local}) if step != NOWHERE}

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
