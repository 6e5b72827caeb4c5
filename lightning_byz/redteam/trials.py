"""What has been tried, and what came of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_byz.compare.cells import Cell
from lightning_byz.compare.names import name_of
from lightning_byz.compare.records import Record
from lightning_byz.compare.summaries import Spread
from lightning_byz.compare.tables import told
from lightning_byz.errors import TooManyFaults

Purpose = Literal["none", "fixed", "search", "again"]


@dataclass(frozen=True)
class Attempt:
    """An attack that is tried.

    Args:
        number: Its place in the search; 0 for the first without attack.
        purpose: Whether it is without attack, a fixed one, chosen by the search, or one of the best again on new seeds.
        attack: As a config writes it; ``None`` for none.
        attackers: How many attack.
    """

    number: int
    purpose: Purpose
    attack: Mapping[str, Any] | None
    attackers: int

    @property
    def title(self) -> str:
        """The attack, and by how many."""
        if self.attack is None:
            return "no attack"
        return f"{name_of(self.attack)} by {self.attackers}"


@dataclass(frozen=True)
class Trial:
    """What came of an attack.

    Args:
        attempt: The attack.
        cells: Its runs, one per seed.
        scores: The metric at the last evaluation of each run that finished.
        failures: Why the others did not.
        stopped: Whether some of them ended with ``TooManyFaults``, and none for another reason: an attack that leaves no model.
    """

    attempt: Attempt
    cells: Sequence[Cell]
    scores: Sequence[float]
    failures: Sequence[str]
    stopped: bool

    @property
    def score(self) -> Spread:
        """Mean over the seeds; of nothing, where a run did not finish."""
        return Spread.of([] if self.failures else list(self.scores))

    @property
    def said(self) -> str:
        """The score in words."""
        return "stopped" if self.stopped else "failed" if self.failures else told(self.score)

    def harm(self, mode: str) -> float | None:
        """Return how bad it is for the user, more being worse; no model, or a metric of NaN, is worst of all.

        ``None`` where a run failed for a reason that need not be the attack.
        """
        if self.stopped:
            return math.inf
        if self.failures:
            return None
        mean = self.score.mean
        return math.inf if math.isnan(mean) else -mean if mode == "max" else mean


def trial_of(attempt: Attempt, cells: Sequence[Cell], records: Mapping[str, Record], metric: str) -> Trial:
    """Return what the records say of an attack."""
    found = [(record, record.last(metric)) for record in (records[cell.id] for cell in cells)]
    scores = [score for _, score in found if score is not None]
    bad = [record for record, score in found if score is None]
    failures = [record.failure or f"it logged no {metric}" for record in bad]
    stopped = bool(bad) and all(record.error == TooManyFaults.__name__ for record in bad)
    return Trial(attempt, cells, scores, failures, stopped)


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Return the attacks of which the harm is known, the worst first."""
    known = [(harm, one) for one in trials if one.attempt.attack and (harm := one.harm(mode)) is not None]
    return [one for _, one in sorted(known, key=lambda pair: -pair[0])]


def worst(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return what hurt most, on new seeds where any was tried on them; ``None`` where no attack has finished."""
    again = ranked([one for one in trials if one.attempt.purpose == "again"], mode)
    return next(iter(again or ranked(trials, mode)), None)


def finalists(trials: Sequence[Trial], mode: str, count: int) -> list[Trial]:
    """Return those that are to be tried again: the worst that differ in more than numbers, among them the worst of the fixed."""
    known, first = ranked(trials, mode), dict[str, Trial]()
    for one in known:
        first.setdefault(_unnumbered(one.attempt.attack), one)
    chosen = list(first.values())[:count]
    fixed = next((one for one in known if one.attempt.purpose == "fixed"), None)
    return chosen if fixed is None or fixed in chosen else [*chosen[: count - 1], fixed]


def of_fixed(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials of fixed attacks: those on new seeds, or all where there is none of these."""
    titles = {one.attempt.title for one in trials if one.attempt.purpose == "fixed"}
    again = [one for one in trials if one.attempt.purpose == "again"]
    return [one for one in again or trials if one.attempt.title in titles]


def beside(trials: Sequence[Trial], trial: Trial) -> Trial | None:
    """Return the runs without attack that have the seeds of this trial."""
    seeds = [cell.seed for cell in trial.cells]
    honest = (one for one in trials if one.attempt.attack is None)
    return next((one for one in honest if [cell.seed for cell in one.cells] == seeds), None)


def _unnumbered(value: Any) -> str:
    """Return in words what is left without numbers."""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_unnumbered(one)}" for name, one in value.items())
    return "" if isinstance(value, int | float) else str(value)
