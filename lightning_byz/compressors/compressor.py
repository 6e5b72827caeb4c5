"""What makes a message smaller on its way."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Entries


class Compressor(ABC):
    r"""Turns a vector into bytes, and bytes into a vector, of as many coordinates.

    What is compressed of a slice of the coordinates, with the sums over all slices that :class:`Coordinates` gives, has the bits of what is
    compressed of the whole, cut: so that an attacker's message can be made where the rules are. A compressor is *contractive* with
    :math:`\alpha \in (0, 1]` where :math:`E\|C(v) - v\|^2 \le (1 - \alpha)\|v\|^2`, and *unbiased* with :math:`\omega \ge 0` where
    :math:`E\,C(v) = v` and :math:`E\|C(v) - v\|^2 \le \omega\|v\|^2`.
    """

    splits: ClassVar[bool] = True
    """Whether messages can be cut by coordinates; without, rules must see all of them: ``Local`` and ``AllGather``."""

    varies: ClassVar[bool] = False
    """Whether the length of a part depends on the vector, so that lengths travel first."""

    draws: ClassVar[bool] = True
    """Whether it asks its generator; one that does not is given any, which saves a little for each message."""

    exceptions: ClassVar[frozenset[str]] = frozenset()
    """Laws of the contract suite that the definition of this compressor does not keep, by name: ``contraction``."""

    @property
    def shared(self) -> bool:
        """Whether all workers draw the same numbers at a step."""
        return False

    @abstractmethod
    def alpha(self, coordinates: Coordinates) -> float | None:
        """Return how contractive it is on vectors of these coordinates; ``None`` where it is not."""

    @abstractmethod
    def omega(self, coordinates: Coordinates) -> float | None:
        """Return the variance of what is unbiased; ``None`` where it is biased."""

    @abstractmethod
    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return how many bytes the part of a vector at these coordinates has; where that ``varies``, at most."""

    def check(self, coordinates: Coordinates) -> None:
        """Refuse vectors that cannot be compressed.

        Raises:
            ValueError: If there are too few coordinates, or no tensor is a matrix.

        """
        return

    @abstractmethod
    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Entries:
        """Return what the vector becomes on its way.

        Args:
            vector: Usable numbers; not to be written to.
            coordinates: Where they lie.
            generator: The only source of randomness; in the same state wherever a slice of the same vector is compressed.

        """

    @abstractmethod
    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write what the bytes say to ``out``, whatever they are: zeros where they are no message.

        Args:
            part: The bytes for these coordinates; of any length and contents.
            coordinates: Where ``out`` lies.
            generator: In the state in which :meth:`encode` got it.
            out: Where to write; its dtype is that of the vectors.

        Returns:
            Whether they are a message of finite numbers; on the device of ``out``, which is not read.

        """
