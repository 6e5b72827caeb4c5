"""Which parameters each worker's messages have used: bits in whole numbers, that ranks can add up and files hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 62
"""In a number, so that it fits into an int64."""
ALL = -1
"""Every bit set."""


@dataclass(frozen=True)
class Usage:
    """Reads and writes these bits among the counts of a memory: of each worker's row in use, and of its waiting message.

    Args:
        parameters: Number of parameters.
        workers: Number of logical workers.

    Example:
        >>> usage = Usage(parameters=2, workers=2)
        >>> counts = usage.waiting({}, [True, True], usage.told({0: [True, True], 1: [False, True]}).tolist())
        >>> usage.tally(counts | usage.accepted(counts, [True, True]), [True, True])
        [1, 2]

    """

    parameters: int
    workers: int

    @property
    def _words(self) -> range:
        return range(-(-self.parameters // BITS))

    def told(self, used: Mapping[int, Sequence[bool]]) -> Tensor:
        """Return what this rank tells the others: a number per word and worker, 0 of workers elsewhere."""
        table = torch.zeros(len(self._words), self.workers, dtype=torch.int64)
        for worker, flags in used.items():
            for word in self._words:
                own = flags[word * BITS : (word + 1) * BITS]
                table[word, worker] = sum(1 << place for place, flag in enumerate(own) if flag)
        return table.view(-1)

    def waiting(
        self, known: Mapping[str, Sequence[int]], computed: Sequence[int], facts: Sequence[int]
    ) -> dict[str, Sequence[int]]:
        """Return the bits of all waiting messages and rows, once some workers have computed."""
        n, counts = self.workers, {}
        for word in self._words:
            told, own = facts[word * n : (word + 1) * n], known.get(_waiting(word), [ALL] * n)
            counts[_row(word)] = known.get(_row(word), [ALL] * n)
            counts[_waiting(word)] = [new if here else old for new, old, here in zip(told, own, computed, strict=True)]
        return counts

    def accepted(self, counts: Mapping[str, Sequence[int]], accepted: Sequence[bool]) -> dict[str, Sequence[int]]:
        """Return the bits of the rows, once some waiting messages have become theirs."""
        return {
            _row(word): [
                new if here else old
                for new, old, here in zip(counts[_waiting(word)], counts[_row(word)], accepted, strict=True)
            ]
            for word in self._words
        }

    def tally(self, counts: Mapping[str, Sequence[int]], in_use: Sequence[bool]) -> list[int]:
        """Return by how many of the rows in use each parameter was used."""
        words = [[bits for bits, here in zip(counts[_row(word)], in_use, strict=True) if here] for word in self._words]
        return [sum(bits >> place % BITS & 1 for bits in words[place // BITS]) for place in range(self.parameters)]

    @staticmethod
    def forgotten(counts: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """Return the counts without these bits, so that all parameters count as used."""
        return {kind: values for kind, values in counts.items() if not kind.startswith(("used ", "waiting used "))}


def _row(word: int) -> str:
    return f"used {word}"


def _waiting(word: int) -> str:
    return f"waiting used {word}"
