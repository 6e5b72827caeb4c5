"""The interface of attacks: what Byzantine workers send, and what they do to their data."""

import inspect
from abc import ABC
from dataclasses import fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.sight import Sight


class Attack(ABC):  # noqa: B024 an attack overrides either door
    """An attack has two doors, and each does nothing until it is overridden."""

    strength: ClassVar[str | None] = None
    """The field, a number, that says how strong the attack is, for :class:`Optimized`; None where there is none."""

    @property
    def remembers(self) -> int:
        """For how many steps the rows that attackers would have sent are kept; they come as ``sight.past``."""
        return 0

    def poison(self, batch: Any, *, generator: torch.Generator) -> Any:
        """The batch on which an attacker computes, from the one it was given."""
        return batch

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """What the attackers send instead of their rows.

        Args:
            sight: What they see. Nothing in it is to be written to.

        Returns:
            One row for each of ``sight.attackers``, in that order, of the dtype of ``sight.stack.vectors``.
        """
        return sight.own


def check_signature(attack: Attack) -> None:
    """Refuse an attack whose ``replace`` cannot be called with a :class:`Sight` and nothing else.

    Raises:
        TypeError: If it asks for other arguments, or says by the name of version 0.1 that it remembers rows.
    """
    if hasattr(attack, "keeps") and not attack.remembers:
        raise TypeError(
            f"{type(attack).__name__}.keeps is called remembers now, and the rows are in sight.past: rename it"
        )
    signature = inspect.signature(attack.replace)
    try:
        signature.bind(object())
    except TypeError:
        asked, offered = ", ".join(signature.parameters), ", ".join(f"sight.{field.name}" for field in fields(Sight))
        raise TypeError(
            f"{type(attack).__name__}.replace takes ({asked}), but it is given one argument, a Sight: write replace(self, sight), and read {offered}"
        ) from None
