"""The search itself: a ladder of strengths, then line searches about the best so far, in turn with optuna's tree of Parzen estimators."""

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial

from lightning_byz.redteam.halving import halfway
from lightning_byz.redteam.space import Choice, Kind, Parameters, Strength, ladder

SEED = 0
TURNS = (0, 1, 0, None)
"""Whose turn it is after the ladder, in a circle: a line search about the best so far, or about the best of the next line; else the estimators'."""
REPEATS = 20
"""How often what was tried already may be chosen again before a strength is drawn by chance."""
Question = Trial


class Sampler:
    """Chooses what to try next; what it is told in one order it answers alike.

    After the fixed attacks the rungs of each kind are tried with all attackers: at its default it may be harmless, and nothing would come back to
    it. From then on most trials go to the strengths of what hurts most.

    Args:
        kinds: What there is.
        most: How many may attack.
    """

    def __init__(self, kinds: Sequence[Kind], most: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._kinds = {kind.name: kind for kind in kinds}
        self._most = most
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED))
        self._graded = [kind.name for kind in kinds if kind.graded]
        self._ladder = ladder(kinds)
        self._known: list[tuple[Parameters, float]] = []
        self._turn = 0

    def seen(self, parameters: Parameters, harm: float | None) -> None:
        """Learn what a fixed attack did; ``None`` if that is not known."""
        if harm is None:
            return
        given = {**parameters, "attackers": self._most}
        known: dict[str, BaseDistribution] = {name: self._distribution(name) for name in given}
        self._study.add_trial(create_trial(params=given, distributions=known, value=harm))
        self._known.append((given, harm))

    def ask(self, *, repeats: int = 0) -> tuple[Question, Parameters]:
        """Return what to try next.

        Args:
            repeats: How often the answers to this question had been tried already: one is the estimators', many are drawn by chance.
        """
        if self._ladder:
            self._study.enqueue_trial({**self._ladder.pop(0), "attackers": self._most})
        elif repeats > REPEATS:
            self._study.enqueue_trial({"kind": self._graded[len(self._study.trials) % len(self._graded)]})
        elif repeats == 0:
            place, self._turn = TURNS[self._turn % len(TURNS)], self._turn + 1
            if place is not None and (middle := halfway(self._kinds, self._known, place=place)):
                self._study.enqueue_trial(dict(middle))
        trial = self._study.ask()
        self._suggest(trial, "kind")
        kind = self._kinds[trial.params["kind"]]
        for argument, one in kind.arguments.items():
            name = f"{kind.name}.{argument}"
            self._suggest(trial, name)
            if isinstance(one, Strength) and one.signed:
                self._suggest(trial, f"{name}.sign")
        self._suggest(trial, "attackers")
        return trial, dict(trial.params)

    def tell(self, trial: Question, harm: float | None) -> None:
        """Learn what came of it; ``None`` if nothing did."""
        if harm is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, harm)
            self._known.append((dict(trial.params), harm))

    def _suggest(self, trial: Trial, name: str) -> None:
        known = self._distribution(name)
        if isinstance(known, CategoricalDistribution):
            trial.suggest_categorical(name, known.choices)
        elif isinstance(known, IntDistribution):
            trial.suggest_int(name, known.low, known.high, log=known.log)
        else:
            trial.suggest_float(name, known.low, known.high, log=known.log)

    def _distribution(self, name: str) -> CategoricalDistribution | IntDistribution | FloatDistribution:
        if name == "kind":
            return CategoricalDistribution(list(self._kinds))
        if name == "attackers":
            return IntDistribution(1, self._most)
        kind, argument, *sign = name.split(".")
        if sign:
            return CategoricalDistribution(["+", "-"])
        one = self._kinds[kind].arguments[argument]
        if isinstance(one, Choice):
            return CategoricalDistribution(range(len(one.values)))
        if one.whole:
            return IntDistribution(int(one.low), int(one.high), log=True)
        return FloatDistribution(one.low, one.high, log=True)
