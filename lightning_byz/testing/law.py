"""What a law is: a statement, and a function that checks it on one case of one rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_byz.testing.case import Broken, Case, NothingToCheck

Check = Callable[[Any, Case], None]


@dataclass(frozen=True)
class Law:
    """A sentence about every rule, and how one case of it is checked.

    Args:
        name: The name by which it is asked for.
        statement: The sentence.
        check: Raises if the rule breaks the law in this case.
        applies: Whether the rule has signed this law at all.
        part: How many cases it takes, as a part of the number asked for; laws that cost more, or vary less, take fewer.
    """

    name: str
    statement: str
    check: Check
    applies: Callable[[Any], bool]
    part: float

    def hold(
        self, rule: Any, cases: int, seed: int, workers: int = 65, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Check ``cases`` cases of up to ``workers`` workers, with what the caller fixes, as far as the law applies.

        Raises:
            AssertionError: In the first case that breaks the law; says which, and what was seen.
        """
        if not self.applies(rule):
            return
        for own in range(seed, seed + max(1, round(cases * self.part))):
            self._hold_in(rule, own, workers, settings)

    def _hold_in(self, rule: Any, seed: int, workers: int, settings: Mapping[str, Any] | None) -> None:
        """Check the case of one seed."""
        case = Case(self.name, seed, workers, settings)
        try:
            self.check(rule, case)
        except NothingToCheck:
            return
        except Exception as error:
            seen = str(error) if isinstance(error, Broken) else f"{type(error).__name__} was raised: {error}"
            facts = ", ".join(f"{name}={_plain(fact)}" for name, fact in {**case.facts, "seed": seed}.items())
            raise AssertionError(
                f"{_named(rule)} breaks the law {self.name!r}: {self.statement}\n  case: {facts}\n  seen: {seen}\n"
                f"  this case alone: laws=[{self.name!r}], cases=1, seed={seed}{f', workers={workers}' if workers != 65 else ''}"
            ) from error


def law(
    statement: str, *, exception: str | None = None, where: Callable[[Any], bool] | None = None, part: float = 1.0
) -> Callable[[Check], Law]:
    """Make a function that checks one case into a law of its name.

    Args:
        statement: The law as a sentence.
        exception: The name in ``rule.exceptions`` by which a rule is excused.
        where: Whether the law concerns a rule.
        part: See :class:`Law`.
    """

    def applies(rule: Any) -> bool:
        excused = exception is not None and exception in rule.exceptions
        return not excused and (where is None or where(rule))

    def wrap(check: Check) -> Law:
        return Law(check.__name__, statement, check, applies, part)

    return wrap


def _plain(fact: Any) -> str:
    return f"{fact:g}" if isinstance(fact, float) else str(fact).removeprefix("torch.")


def _named(rule: Any) -> str:
    """The rule as it shows itself, or its class where it has no better words than an address."""
    return type(rule).__name__ if type(rule).__repr__ is object.__repr__ else repr(rule)
