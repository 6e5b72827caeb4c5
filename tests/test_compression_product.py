"""The full product of estimators, arrivals, links, weights and averages of iterates, and of links and compressors, and its page of docs."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.product import CELLS, WAYS, Answer, Cell, answers, page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compression_product.md"
AT_ONCE = 32


def on_ranks(ranks, world: int, cells: Sequence[Cell]) -> list[Answer]:
    """What became of each cell; the same on every rank."""
    found: list[Answer] = []
    for first in range(0, len(cells), AT_ONCE):
        own, *others = ranks(world).run(answers, cells[first : first + AT_ONCE], world)
        assert all(other == own for other in others)
        found += own
    return found


@pytest.fixture(scope="module")
def alone(ranks) -> dict[str, list[Answer]]:
    return {"cells": on_ranks(ranks, 1, CELLS), "ways": on_ranks(ranks, 1, WAYS)}


def test_each_cell_runs_with_equal_bits_or_is_refused_in_one_sentence(ranks, alone) -> None:
    for cells, known in ((CELLS, alone["cells"]), (WAYS, alone["ways"])):
        for cell, one, two in zip(cells, known, on_ranks(ranks, 2, cells), strict=True):
            assert two == one, cell
            assert one[0] in ("runs", "ValueError"), (cell, one)
            assert one[0] == "runs" or ("\n" not in one[1] and len(one[1]) < 300), one


def test_no_two_cells_train_the_same(alone) -> None:
    runs = [sentence for kind, sentence in alone["cells"] if kind == "runs"]
    assert len(set(runs)) == len(runs) == len(CELLS)


def test_the_page_says_what_is_true(alone) -> None:
    text = page(alone["cells"], alone["ways"])
    if os.environ.get("WRITE_PAGES"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "WRITE_PAGES=1 writes it"
