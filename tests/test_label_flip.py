"""Flipped labels, wherever a batch has them."""

import copy
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import LabelFlip, Sight
from lightning_byz.stack import Stack

Pair = namedtuple("Pair", ["inputs", "labels"])
Plain = namedtuple("Plain", ["first", "second"])
X = torch.arange(12.0).reshape(4, 3)
TOKENS = torch.arange(8).reshape(4, 2)
Y = torch.tensor([0, 9, 3, -100])
FLIPPED = torch.tensor([9, 0, 6, -100])


@dataclass(frozen=True)
class Sample:
    inputs: Tensor
    y: Tensor


class Bag(UserDict):
    pass


def poisoned(batch: Any, **arguments: Any) -> Any:
    return LabelFlip(**{"classes": 10, **arguments}).poison(batch, generator=torch.Generator())


def same(left: Any, right: Any) -> bool:
    """Equal in types, structure and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict | UserDict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return same(vars(left), vars(right)) if hasattr(left, "__dict__") else left == right


CASES = {
    "pair": lambda y: (X, y),
    "list": lambda y: [X, y],
    "tokens": lambda y: (TOKENS, y),
    "three": lambda y: (X, TOKENS, y),
    "dict": lambda y: {"inputs": X, "label": y, "mask": TOKENS},
    "target": lambda y: {"x": TOKENS, "target": y},
    "ordered": lambda y: OrderedDict(x=X, labels=y),
    "user dict": lambda y: Bag(x=X, targets=y),
    "named tuple": lambda y: Pair(TOKENS, y),
    "named tuple of other names": lambda y: Plain(TOKENS, y),
    "dataclass": lambda y: Sample(X, y),
    "object": lambda y: SimpleNamespace(x=X, edge_index=TOKENS, y=y),
    "other names are none": lambda y: {"x": X, "y": y, "label": None},
    "nested list": lambda y: {"x": X, "labels": [y, (y, [y])]},
    "labels in a dict": lambda y: (X, {"boxes": X, "labels": y}),
    "labels in a dict in a dict": lambda y: {"x": X, "target": {"boxes": TOKENS, "labels": y}},
    "detection": lambda y: ([X, X], [{"boxes": X, "labels": y}, {"boxes": TOKENS, "labels": y}]),
    "detection in tuples": lambda y: ((X, X), ({"boxes": X, "labels": y},)),
    "list of dicts": lambda y: [{"x": X, "y": y}, {"x": X, "label": y}],
    "loaders": lambda y: {"first": (TOKENS, y), "second": [X, y], "third": {"x": TOKENS, "y": y}},
    "a loader that has ended": lambda y: {"first": (TOKENS, y), "second": None},
    "a loader in a list that has ended": lambda y: [None, {"x": TOKENS, "y": y}, None],
    "loaders in loaders": lambda y: {"a": {"b": (TOKENS, y)}, "c": Sample(X, y)},
}
PLACED = {
    "first": (0, lambda y: (y, X)),
    "middle": (1, lambda y: [X, y, TOKENS]),
    "from the end": (-2, lambda y: [X, y, TOKENS]),
    "key": ("answer", lambda y: {"y": TOKENS, "answer": y}),
    "number as a key": (7, lambda y: {7: y, 8: TOKENS}),
    "one of two": ("label", lambda y: {"label": y, "target": TOKENS}),
    "attribute": ("first", lambda y: Plain(y, TOKENS)),
    "attribute of an object": ("answer", lambda y: SimpleNamespace(answer=y, y=TOKENS)),
    "lists there": (1, lambda y: (TOKENS, [y, y])),
    "in loaders": (0, lambda y: {"first": (y, TOKENS), "second": [y, X]}),
    "in a list of loaders": ("answer", lambda y: [{"x": X, "answer": y}, {"answer": y}]),
    "in targets": ("answer", lambda y: ([X, X], [{"answer": y}, {"answer": y}])),
}


@pytest.mark.parametrize("case", [*CASES, *PLACED])
def test_labels_are_found_and_nothing_else_is_touched(case: str) -> None:
    place, make = PLACED.get(case, (None, CASES.get(case)))
    batch = make(Y.clone())
    before, got = copy.deepcopy(batch), poisoned(batch, labels=place)
    assert same(got, make(FLIPPED))
    assert same(batch, before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8])
def test_ignored_places_and_what_is_no_class_stay(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[-100, -1, 0], [4, 5, 127]]]).to(dtype)
    assert poisoned((X, labels), classes=5)[1].tolist() == [[[-100, -1, 4], [0, 5, 127]]]
    assert poisoned((X, labels), classes=5)[1].dtype == dtype


def test_the_ends_of_a_type() -> None:
    bytes_ = torch.tensor([0, 1, 254, 255], dtype=torch.uint8)
    assert poisoned((X, bytes_), classes=20)[1].tolist() == [19, 18, 254, 255]
    assert poisoned((X, bytes_), classes=256)[1].tolist() == [255, 254, 1, 0]
    assert poisoned((X, torch.tensor(3)))[1].tolist() == 6
    with pytest.raises(
        ValueError, match=r"LabelFlip\(classes=257\): labels of torch.uint8 cannot hold that many classes"
    ):
        poisoned((X, bytes_), classes=257)


def test_two_classes() -> None:
    truth = torch.tensor([True, False])
    for classes in (None, 2):
        assert poisoned((X, truth), classes=classes)[1].tolist() == [False, True]
    assert poisoned((X, truth.long()), classes=2)[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"LabelFlip\(classes=10\) cannot flip booleans, which have 2 classes"):
        poisoned((X, truth))
    with pytest.raises(
        ValueError, match=r"needs the number of classes to flip labels that are whole numbers: LabelFlip\(classes=10\)"
    ):
        poisoned((X, truth.long()), classes=None)


@pytest.mark.parametrize(
    ("batch", "place", "message"),
    [
        (
            X,
            None,
            "there are no labels, in the batch float32 tensor: labels are tensors of whole numbers or booleans; say where they are with labels=",
        ),
        (TOKENS, None, "there are no labels, in the batch int64 tensor"),
        (None, None, "there are no labels, in the batch NoneType"),
        ("text", None, "there are no labels, in the batch str"),
        ([Y], None, r"the last part is no labels, in the batch \[int64 tensor\]"),
        ((), None, r"there are no labels, in the batch \(\)"),
        ({}, None, "there are no labels, in the batch {}"),
        ((X, X), None, r"what should be labels are float32 numbers, in the batch \(float32 tensor, float32 tensor\)"),
        (
            {"x": X, "y": X},
            None,
            "what should be labels are float32 numbers, in the batch {'x': float32 tensor, 'y': float32 tensor}",
        ),
        ({"x": X, "y": "cat"}, None, "what should be labels is str"),
        ({"x": X, "y": [Y, 3]}, None, "what should be labels is int"),
        ({"x": X, "y": []}, None, r"what should be labels is \[\]"),
        (
            {"x": X, "answer": Y},
            None,
            "there are no labels, in the batch {'x': float32 tensor, 'answer': int64 tensor}",
        ),
        ({"y": Y, "target": Y}, None, "labels could be at any of 'y', 'target'"),
        ([[TOKENS, Y], [TOKENS, Y]], None, "the last part is no labels"),
        ([[TOKENS, Y], [TOKENS, Y]], "y", "there is no 'y'"),
        ((TOKENS, [Y, Y]), None, "the last part is no labels"),
        ({"a": (X, Y), "b": X}, None, "there are no labels"),
        ({"a": (X, Y), "b": (X, X)}, None, "what should be labels are float32 numbers"),
        ((X, Y), 2, r"there is no 2, in the batch \(float32 tensor, int64 tensor\)"),
        ((X, Y), "y", "there is no 'y'"),
        ({"x": X, "y": Y}, "label", "there is no 'label'"),
        (SimpleNamespace(x=X), None, "there are no labels, in the batch SimpleNamespace"),
    ],
)
def test_where_there_are_none_it_says_so(batch: Any, place: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poisoned(batch, labels=place)


def test_rows_are_left_alone() -> None:
    rows = torch.randn(4, 3)
    assert torch.equal(LabelFlip(10).replace(Sight(Stack(rows), [1, 3], torch.Generator())), rows[[1, 3]])
