"""Every combination of estimator, arrivals, link, weights and average of iterates, and of link and compressor: what ranks run, and the page of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from typing import Any

import torch

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.arrivals import RandomArrivals, Synchronous
from lightning_byz.attacks import SignFlip
from lightning_byz.compressors import Cast, Identity, LowRank, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.data import Sizes
from lightning_byz.estimators import DM21, Gradient, Storm, WorkerMomentum
from lightning_byz.exchange import AllGather
from lightning_byz.links import EF21, Diana, Direct, ErrorFeedback, HeavyBall
from lightning_byz.optimizers import Anytime
from tests.scenarios import Fit, Options, fit

SMALL = Options(samples=32, batch_size=2, learning_rate=0.05)
BASE: dict[str, Any] = {
    "workers": 4,
    "f": 1,
    "aggregator": CTMA(CoordinateMedian()),
    "attackers": [1],
    "attack": SignFlip(),
    "partition": Sizes([9, 7, 11, 5]),
}
ESTIMATORS = [Gradient(), WorkerMomentum(0.5), Storm(0.25), DM21(0.25)]
ARRIVALS = [Synchronous(), RandomArrivals("squared", byzantine_share=0.3)]
LINKS = [(Direct(), TopK(0.2)), (ErrorFeedback(), TopK(0.2)), (EF21(), TopK(0.2)), (Diana(), RandomK(0.5))]
WEIGHTS = [None, "samples"]
ANYTIME = [None, Anytime(0.1)]
COMPRESSORS = [
    Identity(),
    TopK(0.2),
    RandomK(0.5),
    RandomK(0.3),
    RandomK(0.3, shared=True),
    RandomK(0.3, scaled=False),
    ScaledSign(),
    Quantize(4),
    Cast("bfloat16"),
    LowRank(1),
]
ALL_LINKS = [Direct(), ErrorFeedback(), EF21(), Diana(), HeavyBall()]

Cell = tuple[Any, ...]
Answer = tuple[str, str]
"""What became of a fit: ``"runs"`` and a digest of the parameters, or the error's class and its sentence."""

CELLS: list[Cell] = [
    (estimator, arrivals, *way, weights, anytime)
    for estimator, arrivals, way, weights, anytime in product(ESTIMATORS, ARRIVALS, LINKS, WEIGHTS, ANYTIME)
]
WAYS: list[Cell] = [
    (WorkerMomentum(0.5), Synchronous(), link, compressor, None, None)
    for compressor, link in product(COMPRESSORS, ALL_LINKS)
]


def strategy_of(cell: Cell) -> dict[str, Any]:
    """The arguments of RobustStrategy."""
    estimator, arrivals, link, compressor, weights, anytime = cell
    return {
        **BASE,
        "estimator": estimator,
        "arrivals": arrivals,
        "link": link,
        "compressor": compressor,
        "weights": weights,
        "anytime": anytime,
        "exchange": AllGather() if isinstance(compressor, LowRank) else None,
    }


def answers(cells: Sequence[Cell], devices: int) -> list[Answer]:
    """What each cell does on this rank, in three steps."""
    return [
        _answer(Fit(SMALL, strategy_of(cell), {"max_steps": 3, "max_epochs": -1, "limit_val_batches": 0}), devices)
        for cell in cells
    ]


def _answer(job: Fit, devices: int) -> Answer:
    try:
        result = fit(job, devices)
    except (ValueError, TypeError, NotImplementedError) as error:
        return type(error).__name__, str(error)
    assert result["global_step"] == 3
    parameters = torch.cat([value.flatten() for value in result["parameters"].values()])
    assert parameters.isfinite().all()
    return "runs", hashlib.sha256(parameters.numpy().tobytes()).hexdigest()


def page(cells: Sequence[Answer], ways: Sequence[Answer]) -> str:
    """The page of docs, from what became of ``CELLS`` and ``WAYS``."""
    notes: dict[str, int] = {}
    rest = len(WEIGHTS) * len(ANYTIME)
    several = [_word(cells[first : first + rest], notes) for first in range(0, len(cells), rest)]
    heads = [f"`{_short(estimator)}`, `{_short(arrivals)}`" for estimator, arrivals in product(ESTIMATORS, ARRIVALS)]
    single = [_word([answer], notes) for answer in ways]
    lines = [
        _BEFORE,
        *_table([f"`{_short(link)}`, `{_short(compressor)}`" for link, compressor in LINKS], heads, several),
        _BETWEEN,
        *_table([f"`{_short(link)}`" for link in ALL_LINKS], [f"`{_short(one)}`" for one in COMPRESSORS], single),
    ]
    said = [f"{number}. {sentence}" for sentence, number in notes.items()]
    return "\n".join([*lines, "", "The sentences:", "", *said, ""])


def _word(several: Sequence[Answer], notes: dict[str, int]) -> str:
    """What a field of a table says of its fits."""
    refused = sorted({sentence for kind, sentence in several if kind != "runs"})
    told = ", ".join(str(notes.setdefault(sentence, len(notes) + 1)) for sentence in refused)
    some = "some " * any(kind == "runs" for kind, _ in several)
    return f"{some}refused ({told})" if refused else "runs"


def _table(columns: Sequence[str], rows: Sequence[str], fields: Sequence[str]) -> list[str]:
    wide = len(columns)
    lines = [" | ".join([row, *fields[place * wide : (place + 1) * wide]]) for place, row in enumerate(rows)]
    return [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * wide, *(f"| {line} |" for line in lines)]


def _short(stage: object) -> str:
    """A stage as one writes it: what has its default is left out."""
    own = [
        (field, getattr(stage, field.name))
        for field in fields(stage)  # pyright: ignore[reportArgumentType]
        if getattr(stage, field.name) != field.default
    ]
    told = [
        str(value) if place == 0 and not field.kw_only else f"{field.name}={value!r}"
        for place, (field, value) in enumerate(own)
    ]
    return f"{type(stage).__name__}({', '.join(told)})" if told else type(stage).__name__


_BEFORE = """# What goes with which link

Made by `WRITE_PAGES=1 pytest tests/test_compression_product.py`, which runs each field and fails where this page says something else. Every field is
fits of 4 workers, one of which attacks, on 1 and on 2 ranks: "runs" where all of them end with the same bits of the parameters; what is refused is
refused before the first step, in one sentence.

## Estimators, arrivals and links

Each field stands for four runs: workers that count alike and `weights="samples"`, without and with `Anytime(0.1)`.
"""
_BETWEEN = """
## Links and compressors

With `WorkerMomentum(0.5)`, all workers at each step. `LowRank` through `AllGather`: its factors do not split by coordinates.
"""
