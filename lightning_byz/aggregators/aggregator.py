"""The interface of aggregators: from the messages of one step to one vector."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.rule import Rule
from lightning_byz.stack import Stack


class Aggregator(Rule, ABC):
    """Turns a stack into one vector. A rule of your own overrides ``__call__``, and that is enough."""

    def kappa(self, n: float, f: float) -> float | None:
        r"""The constant of :math:`(f, \kappa)`-robustness, or None where none is known.

        Whatever ``f`` of ``n`` rows hold, for the others, :math:`S`:
        :math:`\|F(x) - \bar x_S\|^2 \le \kappa\, \frac{1}{|S|} \sum_S \|x_i - \bar x_S\|^2`. With unequal weights
        ``n`` is the total weight. Only where ``f`` is tolerated.
        """
        return None

    @abstractmethod
    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float[Tensor, " d"]:
        """The aggregate of the rows of ``stack``, in their dtype and on their device."""

    def explain(
        self, stack: Stack, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " d"], Float64[Tensor, " n"] | None]:
        """The aggregate, and each original row's coefficient in it, or None where it is no weighted sum of rows."""
        return self(stack, generator=generator), None

    def distances(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The squared distance of each row of an admitted stack from the aggregate."""
        return stack.squared_distances_to(self(stack, generator=generator))

    def survey_distances(self, stack: Stack) -> None:
        """As ``survey``, for who will ask for ``distances``."""
        self.survey(stack)


class CoordinateRule(Aggregator):
    """An aggregator that computes each coordinate from the rows' values there: it overrides ``statistic`` instead."""

    @abstractmethod
    def statistic(self, stack: Stack) -> Callable[..., Float[Tensor, " d"]]:
        """What makes one number of each coordinate of an admitted stack: called with its rows, their weights as numbers, and ``aside=``.

        That is a question which need not be answered (``lightning_byz.kernels.Aside``).
        """

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float[Tensor, " d"]:
        """The aggregate of the rows of ``stack``, in their dtype and on their device."""
        stack = self.admit(stack)
        early = stack.found.pop("aggregate", None)
        if early is not None and early[0] is self:
            return early[1]
        return self._surveyed(stack)[0]

    def distances(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The squared distance of each row of an admitted stack from the aggregate, found in one pass with it."""
        early = stack.found.pop("distances", None)
        if early is not None and early[0] is self:
            return early[1]
        return self._surveyed(stack, distances=True)[1] if self._as_here else super().distances(stack)

    def survey(self, stack: Stack) -> None:
        """Aggregate a stack at which nobody has looked yet."""
        if "nonfinite" not in stack.found and (found := self._survey(stack)):
            stack.found["aggregate"] = self, found[0]

    def survey_distances(self, stack: Stack) -> None:
        """Find out ``distances`` of a stack at which nobody has looked yet."""
        if self._as_here and "nonfinite" not in stack.found and (found := self._survey(stack, distances=True)):
            stack.found["distances"] = self, found[1]

    @property
    def _as_here(self) -> bool:
        """Whether no derived class has made something else of what an aggregate is."""
        return type(self).__call__ is CoordinateRule.__call__ and type(self).admit is CoordinateRule.admit

    def _survey(self, stack: Stack, *, distances: bool = False) -> tuple[Any, Any] | None:
        return stack.survey(self.statistic(stack), distances=distances)

    def _surveyed(self, stack: Stack, *, distances: bool = False) -> tuple[Any, Any]:
        found = self._survey(stack, distances=distances)
        assert found is not None, "an admitted stack has no broken rows"
        return found


class RowAverage(Aggregator):
    """An aggregator whose result is a weighted sum of rows: it overrides ``coefficients`` instead."""

    @abstractmethod
    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The coefficient of each row of an admitted stack."""

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float[Tensor, " d"]:
        """The aggregate of the rows of ``stack``, in their dtype and on their device."""
        stack = self.admit(stack)
        return stack.combination(self.coefficients(stack, generator=generator))

    def explain(
        self, stack: Stack, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " d"], Float64[Tensor, " n"] | None]:
        """The aggregate, and each original row's coefficient in it."""
        stack = self.admit(stack)
        own = self.coefficients(stack, generator=generator)
        return stack.combination(own), own if stack.mixing is None else own @ stack.mixing
