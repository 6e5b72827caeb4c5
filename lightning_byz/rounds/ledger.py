"""What is counted of each worker under arrivals: alike on all ranks, n whole numbers of each kind."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from lightning_byz.census import Arrival
from lightning_byz.memory import NOWHERE
from lightning_byz.rounds.overflow import FITS, heard
from lightning_byz.rounds.usage import Usage

Counts = Mapping[str, Sequence[int]]
AT_SCALE = "at scale"


@dataclass(frozen=True)
class Ledger:
    """The counts of one step.

    ``turns`` taken; deliveries ``accepted``; estimates ``adopted``, from which a worker that starts anew counts again; deliveries ``refused`` in a
    row; the step at which a waiting message was ``fetched`` and computed; that at which the ``row`` in use was; and, where the estimator asks for
    two gradients, that of its ``point``. Under a gradient scaler, what each worker's last turn ``at scale`` has shown.

    Args:
        step: The number of the step.
        workers: Number of logical workers.
        points: How many gradients the estimator asks for.
        usage: The bits of used parameters.

    """

    step: int
    workers: int
    points: int
    usage: Usage

    def fetched(
        self,
        known: Counts,
        computing: Container[int],
        told: Sequence[int],
        used: Sequence[int],
        *,
        scaled: bool = False,
    ) -> dict[str, Sequence[int]]:
        """Return the counts once turns were taken: messages wait.

        Args:
            known: The counts before.
            computing: Who took a turn.
            told: For each worker whether it made a message, and whether that fits, as in :mod:`overflow`.
            used: What all ranks told of it.
            scaled: Whether there is a gradient scaler.

        """
        sent = [one == FITS for one in told]
        none, nowhere = [0] * self.workers, [NOWHERE] * self.workers
        counts = {kind: known.get(kind, none) for kind in ("turns", "accepted", "adopted", "refused")}
        counts |= {kind: known.get(kind, nowhere) for kind in ("row", "fetched", "point")[: self.points + 1]}
        counts["turns"] = [count + (worker in computing) for worker, count in enumerate(counts["turns"])]
        for kind in ("fetched", "point")[: self.points]:
            counts[kind] = _chosen(sent, [self.step] * self.workers, counts[kind])
        if scaled:
            counts[AT_SCALE] = heard(known.get(AT_SCALE, none), told)
        return counts | self.usage.waiting(known, sent, used)

    def arrival(self, counts: Counts, unusable: Mapping[int, int]) -> list[Arrival]:
        """Return what became of each worker's message, from the numbers that no rule can use in those that were due."""

        def word(worker: int) -> Arrival:
            if worker not in unusable:
                return Arrival.NOT_DUE
            if counts["fetched"][worker] == NOWHERE:
                return Arrival.ABSENT
            return Arrival.BROKEN if unusable[worker] else Arrival.ARRIVED

        return [word(worker) for worker in range(self.workers)]

    def accepted(self, counts: Counts, arrival: Sequence[Arrival]) -> dict[str, Sequence[int]]:
        """Return the counts once the messages that were due are accepted or refused."""
        good, bad = ([word is one for word in arrival] for one in (Arrival.ARRIVED, Arrival.BROKEN))
        refused = [count + out for count, out in zip(counts["refused"], bad, strict=True)]
        after = {
            **counts,
            "accepted": [count + here for count, here in zip(counts["accepted"], good, strict=True)],
            "adopted": [count + here for count, here in zip(counts["adopted"], good, strict=True)],
            "refused": _chosen(good, [0] * self.workers, refused),
            "row": _chosen(good, counts["fetched"], counts["row"]),
            "fetched": _chosen(
                [word is Arrival.NOT_DUE for word in arrival], counts["fetched"], [NOWHERE] * self.workers
            ),
            **self.usage.accepted(counts, good),
        }
        if self.points > 1:  # its earlier point is gone: a worker that was refused starts anew
            after["adopted"] = _chosen(bad, [0] * self.workers, after["adopted"])
            after["point"] = _chosen(bad, [NOWHERE] * self.workers, counts["point"])
        return after

    def ages(self, counts: Counts) -> list[int]:
        """Return the steps since each row in use was computed; 0 where there is none."""
        return [0 if step == NOWHERE else self.step - step for step in counts["row"]]


def replayed(computing: Callable[[int], Sequence[int]], steps: int, *, workers: int) -> list[int]:
    """Return how many turns each worker has taken after some steps."""
    turns = [0] * workers
    for worker in chain.from_iterable(map(computing, range(steps))):
        turns[worker] += 1
    return turns


def _chosen(flags: Sequence[int], yes: Sequence[int], no: Sequence[int]) -> list[int]:
    return [one if flag else other for flag, one, other in zip(flags, yes, no, strict=True)]


def refuse_foreign(step: int, counts: Counts, computing: Callable[[int], Sequence[int]], *, workers: int) -> None:
    """Refuse to go on from the counts of a run in lock-step, or with other arrivals.

    Args:
        step: The step that was reached.
        counts: What was counted until then.
        computing: Returns who takes a turn at a step.
        workers: Number of logical workers.

    Raises:
        ValueError: If they are of another run.

    """
    if step and "turns" not in counts:
        raise ValueError(
            "The checkpoint is of a run without arrivals=, in which no message waits: resume with arrivals=Synchronous(), or start a new run from"
            " the weights alone."
        )
    if replayed(computing, step, workers=workers) != list(counts.get("turns", [0] * workers)):
        raise ValueError(
            "The checkpoint is of a run in which workers came at other steps: resume with the same arrivals (and attackers, where a share is"
            " stated), or start a new run from the weights alone."
        )
