"""What a worker sends instead of its raw gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lightning_byz.memory import Vectors, map_vectors


class Estimator(ABC):
    """A worker's estimate of the gradient, with a memory that is a value: passed in, returned, adopted by the caller.

    A memory is a mapping from names to vectors of length d and to numbers. The caller adopts the proposed memory only if
    the worker's row was accepted and the step was taken, so a gradient that is not finite leaves nothing behind. It is saved
    with the run and moves with its worker; when the set of trained parameters changes, vectors follow their parameters by
    name, with zeros for new ones, and numbers stay, unless :meth:`realigned` says otherwise.
    """

    points: ClassVar[int] = 1
    """At how many parameter vectors the gradient of a batch is asked for: 2 for also the one where the worker's adopted estimate was made."""

    exceptions: ClassVar[frozenset[str]] = frozenset()
    """Laws of the contract suite that the definition of this estimator does not keep, by name: ``convergence``, ``coordinates``, ``scaling``."""

    @abstractmethod
    def init(self, like: Float[Tensor, " d"]) -> Vectors:
        """Return the memory before the first gradient, for vectors of the length, dtype and device of ``like``."""

    @abstractmethod
    def update(
        self, memory: Vectors, gradients: Sequence[Float[Tensor, " d"]], *, count: int
    ) -> tuple[Float[Tensor, " d"], Vectors]:
        """Return the estimate, in the gradients' dtype, and the proposed memory.

        Args:
            memory: What the worker remembers; not to be written to.
            gradients: Of one batch, one per point: the first where the parameters are, a second where the last adopted estimate was
                made (where the parameters are, as long as there is none). The first is not to be written to, and its memory is used again after
                the step; the second is given away: its memory may be the new memory's.
            count: How many estimates of this worker were adopted so far.

        """

    def realigned(self, memory: Vectors, realign: Callable[[Tensor, float], Tensor]) -> Vectors:
        """Return the memory for another set of trained parameters.

        Args:
            memory: What the worker remembers.
            realign: Carries a vector over by name, and fills coordinates that are new with a number.

        """
        return map_vectors(memory, lambda vector: realign(vector, 0.0))
