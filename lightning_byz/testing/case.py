"""One case of a law: what it draws, what it notes for the message, and how a broken law is reported."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_byz.random import generator

Option = TypeVar("Option")


class Broken(AssertionError):
    """What a law saw that must not be."""


class NothingToCheck(Exception):
    """The drawn case does not concern the rule, or decides nothing, such as a tie."""


class Case:
    """A law's draws for one seed, and the facts that name the case when the law is broken.

    Args:
        law: Name of the law; together with ``seed`` it keys every draw.
        seed: Number of the case; the same number gives the same case again.
        workers: How many workers there are at most.
        settings: What the caller fixes rather than leave it to the draws.
    """

    def __init__(self, law: str, seed: int, workers: int = 65, settings: Mapping[str, Any] | None = None) -> None:
        self.seed = seed
        self.workers = workers
        self.settings = settings or {}
        self.generator = generator(seed, law)
        self.facts: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Remember ``facts`` for the message."""
        self.facts.update(facts)

    def whole(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))

    def real(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return low + (high - low) * float(torch.rand(1, generator=self.generator, dtype=torch.float64))

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.real(0, 1) < probability

    def one_of(self, options: Sequence[Option]) -> Option:
        """One of ``options``."""
        return options[self.whole(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normal numbers, in float64."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def order(self, count: int) -> Tensor:
        """A random order of ``count`` things."""
        return torch.randperm(count, generator=self.generator)


def require(holds: bool, seen: str) -> None:
    """Raise ``Broken`` with what was ``seen`` unless ``holds``; ``python -O`` does not drop it."""
    if not holds:
        raise Broken(seen)


def gap(left: Tensor, right: Tensor) -> float:
    """The largest difference between two tensors, in parts of the larger of 1 and the largest number of ``right``; infinite if shapes differ."""
    if left.shape != right.shape:
        return float("inf")
    if left.numel() == 0:
        return 0.0
    if bool((left.isnan() & right.isnan()).all()):
        return 0.0  # other laws ask for finite numbers
    wide = right.double()
    difference = (left.double() - wide).abs().max() / wide.abs().max().clamp(min=1.0)
    return float(difference.nan_to_num(nan=float("inf")))


def require_close(left: Tensor, right: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Raise ``Broken`` unless ``left`` and ``right`` differ by rounding only."""
    if gap(left, right) > tolerance:
        difference = (left.double() - right.double()).abs().nan_to_num(nan=float("inf")).flatten()
        place = int(difference.argmax())
        seen, wanted = left.flatten()[place], right.flatten()[place]
        raise Broken(
            f"{what}: {shown(left)} instead of {shown(right)}, furthest apart at {place}: {seen:.17g} and {wanted:.17g}"
        )


def require_equal(left: Tensor, right: Tensor, what: str) -> None:
    """Raise ``Broken`` unless ``left`` and ``right`` have the same bits, whatever they hold."""
    if left.shape != right.shape or left.dtype != right.dtype or not torch.equal(left, right):
        same = left.shape == right.shape and left.dtype == right.dtype
        if same and bool(((left == right) | (left.isnan() & right.isnan())).all()):
            return
        places = (left != right).nonzero().flatten().tolist()[:4] if same else []
        raise Broken(
            f"{what}: {shown(left)} instead of {shown(right)}" + (f", different first at {places}" if places else "")
        )


def require_bits(left: Tensor, right: Tensor, what: str) -> None:
    """Raise ``Broken`` unless ``left`` and ``right`` are the same to the last bit: signs of zeros and payloads of NaN too."""
    if left.shape != right.shape or left.dtype != right.dtype:
        raise Broken(f"{what}: {shown(left)} instead of {shown(right)}")
    seen, wanted = (_bytes(tensor) for tensor in (left, right))
    if not torch.equal(seen, wanted):
        place = int((seen != wanted).nonzero()[0]) // left.element_size()
        one, other = left.flatten()[place].item(), right.flatten()[place].item()
        raise Broken(
            f"{what}: {shown(left)} instead of {shown(right)}, bits different first at {place}: {one} and {other}"
        )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def shown(tensor: Tensor) -> str:
    """The first numbers of a tensor, with its shape and dtype where they tell."""
    numbers = ", ".join(f"{value:.6g}" for value in tensor.detach().double().flatten()[:5].tolist())
    return f"[{numbers}{', ...' if tensor.numel() > 5 else ''}] ({tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')})"
