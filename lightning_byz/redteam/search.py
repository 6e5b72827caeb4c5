"""The search: what is tried in which order, one run or many at a time, and never twice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_byz.compare.command import finish
from lightning_byz.compare.names import name_of
from lightning_byz.compare.processes import Processes
from lightning_byz.compare.progress import Meter, meter
from lightning_byz.compare.records import Folder, write_whole
from lightning_byz.compare.yaml_file import GridMistake
from lightning_byz.redteam.plan import FINALISTS, Plan
from lightning_byz.redteam.sampler import Question, Sampler
from lightning_byz.redteam.space import Parameters, fixed
from lightning_byz.redteam.trials import Attempt, Trial, finalists, trial_of

TOLD = ("config", "attackers", "metric", "mode", "seeds")


def claimed(plan: Plan, folder: Folder) -> Plan:
    """Have the folder be this search's, and return the plan as it was begun there.

    Raises:
        GridMistake: If it holds something else.
    """
    path = folder.path / "search.json"
    if path.is_file():
        begun = _begun(path)
        other = [key for key, mine in plan.told.items() if begun[key] != mine]
        judged = len(folder.records()) > len(plan.seeds)  # by its metric; the first runs are made without attack
        if plan.budget < begun["budget"]:
            raise GridMistake(
                f"{folder.path} holds a search with budget={begun['budget']}, not {plan.budget}: a budget may grow, not shrink; "
                f"give --budget {begun['budget']} or more, or another --output."
            )
        for key in other if judged or set(other) - {"metric", "mode"} else ():
            mine, its = name_of(plan.told[key]), name_of(begun[key])
            what = "of another config" if key == "config" else f"with {key}={its}, not {mine}"
            raise GridMistake(
                f"{folder.path} holds a search {what}: give another --output, or the search as it was; its budget may grow."
            )
        plan = replace(plan, ahead=begun["ahead"])
    elif others := folder.records():
        raise GridMistake(f"{folder.path} holds {len(others)} runs of no search: give another --output.")
    write_whole(path, json.dumps({**plan.told, "ahead": plan.ahead, "budget": plan.budget}, indent=1) + "\n")
    return plan


def _begun(path: Path) -> dict[str, Any]:
    try:
        begun = json.loads(path.read_text())
        return {key: begun[key] for key in (*TOLD, "ahead", "budget")}
    except (ValueError, KeyError, TypeError):
        raise GridMistake(
            f"{path} says nothing of a search that this command could go on with: give another --output."
        ) from None


def searched(plan: Plan, folder: Folder) -> Iterator[Trial]:
    """Yield what each attack did, in the order of the search; runs that are kept are not made again. It ends where a run without attack has failed.

    Raises:
        GridMistake: If the first run that finishes has not logged the metric.
        FullDisk: If a run could not be kept.
    """
    most = len(plan.attackers)
    with meter(plan.runs, len(folder.records())) as progress, Processes(plan.processes, 1) as processes:
        room = _Room(plan, folder, processes, progress)
        trials = room.tried([Attempt(0, "none", None, 0)])
        yield trials[0]
        if trials[0].failures:
            return
        first = [Attempt(number, "fixed", attack, most) for number, attack in enumerate(plan.fixed, 1)]
        sampler, seen = Sampler(plan.kinds, most), set()
        known = [parameters for parameters, _ in fixed(plan.kinds)]
        for parameters, trial in zip([*known, *([None] * len(first))], room.tried(first), strict=False):
            if parameters is not None:
                sampler.seen(parameters, trial.harm(plan.mode))
            seen.add(trial.attempt.title)
            trials.append(trial)
            yield trial
        last = plan.budget - FINALISTS * plan.rounds
        while (number := len(trials)) <= last:
            asked = [_asked(sampler, plan, seen, place) for place in range(number, min(number + plan.ahead, last + 1))]
            for (question, _), trial in zip(asked, room.tried([one for _, one in asked]), strict=True):
                sampler.tell(question, trial.harm(plan.mode))
                trials.append(trial)
                yield trial
        best = finalists(trials, plan.mode, FINALISTS) if plan.rounds else []
        if best:
            again = [replace(one.attempt, number=last + 2 + place, purpose="again") for place, one in enumerate(best)]
            room = _Room(plan.again, folder, processes, progress)
            yield from room.tried([Attempt(last + 1, "none", None, 0), *again])


class _Room:
    """Where attacks are tried."""

    def __init__(self, plan: Plan, folder: Folder, processes: Processes, progress: Meter) -> None:
        self._plan, self._folder, self._processes, self._progress = plan, folder, processes, progress

    def tried(self, attempts: Sequence[Attempt]) -> list[Trial]:
        """Return what came of these, all at the same time."""
        names = {f"{one.number}, {one.title}": (one.attack, one.attackers) for one in attempts}
        cells = self._plan.cells(names)
        runs = [cells.compared(variant, {}) for variant in cells.variants]
        finish([run for mine in runs for run in mine], cells, self._folder, self._processes, self._progress)
        records = self._folder.records(run.id for mine in runs for run in mine)
        pairs = zip(attempts, runs, strict=True)
        return [trial_of(attempt, mine, records, self._plan.metric) for attempt, mine in pairs]


def _asked(sampler: Sampler, plan: Plan, seen: set[str], number: int) -> tuple[Question, Attempt]:
    """Return the sampler's question and the attack that it asks for, which has not been tried; note it as seen."""
    repeats = 0
    while True:
        question, parameters = sampler.ask(repeats=repeats)
        attempt = _attempt(plan, parameters, number)
        if attempt.title not in seen:
            seen.add(attempt.title)
            return question, attempt
        sampler.tell(question, None)
        repeats += 1


def _attempt(plan: Plan, parameters: Parameters, number: int) -> Attempt:
    kind = next(one for one in plan.kinds if one.name == parameters["kind"])
    return Attempt(number, "search", kind.chosen(parameters), parameters["attackers"])
