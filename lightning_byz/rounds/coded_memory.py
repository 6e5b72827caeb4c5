"""What a run under a code is known by when it is resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lightning_byz.codes import Code
from lightning_byz.estimators import Estimator
from lightning_byz.memory import Memory

MEAN_STAGE = "mean"
NAMED = "named"
"""Per worker, at how many steps its row did not fit; runs without a code have no such count."""


def begun(memory: Memory, code: Code, workers: int) -> Memory:
    """Return the memory with the counts of a code, which are there from the first step on, taken or not."""
    return replace(memory, counts={NAMED: [0] * workers, **_layout(code, workers), **memory.counts})


def refuse_other_rows(code: Code, workers: int, step: int, counts: Mapping[str, Sequence[int]]) -> None:
    """Refuse the memory of a run without a code, or of one whose rows or batches are others.

    Raises:
        ValueError: If it is.

    """
    if step and NAMED not in counts:
        raise ValueError(
            "The checkpoint is of a run without a code, in which each worker remembers for itself: resume without code=, or start a new run from"
            " the weights alone."
        )
    if step and any([*counts.get(kind, ())] != own for kind, own in _layout(code, workers).items()):
        raise ValueError(
            f"The checkpoint is of a run with another code, whose rows and buffers are not those of {code}: resume with the same code, or start a"
            " new run from the weights alone."
        )


def refuse_other_estimator(memory: Memory, estimator: Estimator) -> None:
    """Refuse what another estimator remembers of the mean.

    Raises:
        ValueError: If it does.

    """
    known = sorted(memory.rules[MEAN_STAGE].values) if MEAN_STAGE in memory.rules else []
    own = sorted(estimator.init(torch.zeros(1)))
    if "adopted" in memory.counts and known != own:
        raise ValueError(
            f"The checkpoint holds {known} of the decoded mean, and this run's estimator remembers {own}: resume with the same estimator, or start a"
            " new run from the weights alone."
        )


def _layout(code: Code, workers: int) -> dict[str, list[int]]:
    """Per worker, how many gradients it computes at a step, and how many pieces its row adds up and carries."""
    where, computed = code.coordinates(1), [len(parts) for parts in code.parts(workers)]
    return {"computed": computed, "pieces": [where.pieces] * workers, "carried": [where.carried] * workers}
