"""Flipped labels."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.labels import relabelled


@dataclass(frozen=True)
class LabelFlip(Attack):
    r"""Compute honestly on wrong labels: :math:`y \to C - 1 - y` with :math:`C` classes, and true for false.

    Labels are whole numbers or booleans of any shape. Those outside 0 to :math:`C - 1` are no classes and stay: -100 and 255 mean *ignore* to losses.
    The batch that was given is not written to; the poisoned one is of the same type and shares its inputs.

    Without ``labels``, the labels of a batch are

    - the last element of a tuple or list, such as ``(inputs, labels)``;
    - in a dict, a dataclass, a named tuple or another object, the only one of ``label``, ``labels``, ``y``, ``target``, ``targets`` that it has;
    - in a dict or list of nothing but batches, such as several data loaders give, the labels of each; in a list, these must be dicts or objects.

    What is found may again be a dict or object, or under a name a list, whose parts are treated alike. Anything else is refused.

    Args:
        classes: Number of classes :math:`C`. May be left out for booleans only: the classes of a batch are not those of the data.
        labels: Key of a dict, name of an attribute, or index in a tuple or list, where the labels of a batch are.

    Raises:
        ValueError: If ``classes`` is below 2 or missing, or the batch has no labels at that place, or more than one place where they could be.

    References:
        Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to Byzantine-Robust Federated Learning. USENIX Security 2020, arXiv 1911.11815.

    Example:
        >>> inputs, labels = torch.zeros(3, 4), torch.tensor([0, 8, -100])
        >>> LabelFlip(classes=10).poison((inputs, labels), generator=torch.Generator())[1]
        tensor([   9,    1, -100])
    """

    classes: int | None = None
    _: KW_ONLY
    labels: int | str | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and (not isinstance(self.classes, int) or self.classes < 2):
            raise ValueError(f"classes must be None or a whole number >= 2, not {self.classes}")

    def poison(self, batch: Any, *, generator: torch.Generator) -> Any:
        """The batch with its labels flipped."""
        return relabelled(batch, self._flipped, self.labels)

    def _flipped(self, labels: Tensor) -> Tensor:
        if labels.dtype == torch.bool:
            if self.classes not in (None, 2):
                raise ValueError(f"LabelFlip(classes={self.classes}) cannot flip booleans, which have 2 classes")
            return ~labels
        if self.classes is None:
            raise ValueError(
                "LabelFlip needs the number of classes to flip labels that are whole numbers: LabelFlip(classes=10)"
            )
        last = self.classes - 1
        if last > torch.iinfo(labels.dtype).max:
            raise ValueError(
                f"LabelFlip(classes={self.classes}): labels of {labels.dtype} cannot hold that many classes"
            )
        return torch.where((labels >= 0) & (labels <= last), last - labels, labels)
