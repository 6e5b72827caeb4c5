"""What a search is asked for: whose run, which workers, by which metric, how often."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from lightning_byz.compare.cells import Cells
from lightning_byz.compare.fit import check
from lightning_byz.compare.grid import Axis, Grid
from lightning_byz.compare.names import name_of
from lightning_byz.compare.wandb_runs import refuse_without_wandb
from lightning_byz.compare.yaml_file import GridMistake, read
from lightning_byz.kinds import listed
from lightning_byz.redteam.space import Kind, catalogue, fixed, spelt
from lightning_byz.strategies import RobustStrategy

Attack = Mapping[str, Any]
"""A class and its arguments, as a config writes them."""
FINALISTS = 3
"""How many are tried again."""


@dataclass(frozen=True)
class Plan:
    """A search.

    Args:
        config: Of the fit.
        budget: How many attacks are tried.
        output: The folder of the results.
        metric: By which runs are judged, at their last evaluation.
        mode: Whether more of it is better for the user, or less.
        seeds: Of the runs of each attack, over which the metric is averaged.
        processes: How many runs at the same time.
        ahead: How many attacks are chosen before the first of them is judged.
        workers: How many there are.
        attackers: Ids of those who may attack, in the order in which they join.
        own: The config's own attack, if it has one that is not among the fixed.
    """

    config: Path
    budget: int
    output: Path
    metric: str
    mode: Literal["max", "min"]
    seeds: tuple[int, ...]
    processes: int
    ahead: int = 1
    workers: int = 0
    attackers: tuple[int, ...] = ()
    own: Attack | None = None

    @property
    def kinds(self) -> list[Kind]:
        """What is searched."""
        return catalogue([one for one in range(self.workers) if one not in self.attackers])

    @property
    def fixed(self) -> list[Attack]:
        """The attacks that come first: the catalogue's with their defaults, its line searches, and the config's own."""
        known = [attack for _, attack in fixed(self.kinds)]
        return known + ([self.own] if self.own and name_of(self.own) not in map(name_of, known) else [])

    @property
    def rounds(self) -> int:
        """On how many times as many new seeds the best are tried again: a quarter of the budget, as far as the fixed attacks leave it."""
        return min(self.budget // 4, self.budget - len(self.fixed)) // FINALISTS

    @property
    def again(self) -> "Plan":
        """The same on the seeds that follow the largest of these."""
        count = len(self.seeds) * self.rounds
        return replace(self, seeds=tuple(range(max(self.seeds) + 1, max(self.seeds) + 1 + count)))

    @property
    def runs(self) -> int:
        """How many runs there are in all, those without attack included."""
        return (1 + self.budget + self.rounds) * len(self.seeds)

    @property
    def told(self) -> dict[str, Any]:
        """What two searches must have in common for one to go on where the other stopped."""
        text = repr(sorted(read(self.config, "config").items()))
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return {
            "config": digest,
            "attackers": list(self.attackers),
            "metric": self.metric,
            "mode": self.mode,
            "seeds": list(self.seeds),
        }

    def cells(self, attacks: Mapping[str, tuple[Attack | None, int]]) -> Cells:
        """Return the runs of some attacks by so many attackers, under these names."""
        return Cells(
            Grid(
                base=self.config,
                axes=(Axis("attack", {name: self._values(*one) for name, one in attacks.items()}),),
                output=self.output,
                seeds=self.seeds,
                metric=self.metric,
                mode=self.mode,
                processes=self.processes,
            )
        )

    def _values(self, attack: Attack | None, count: int) -> dict[str, Any]:
        attackers = sorted(self.attackers[:count]) if attack else []
        return {"trainer.strategy.attack": attack, "trainer.strategy.attackers": attackers}


def planned(plan: Plan, most: int | None) -> Plan:
    """Return the plan with what the config says of its run.

    Args:
        plan: As asked for, with no workers and no attackers, and perhaps no seeds.
        most: How many may attack; ``None`` for the config's ``f``.

    Raises:
        GridMistake: If the config is none of a robust run, or leaves open what must be known, or the budget is too small.
    """
    read_config = check(["fit", "--config", str(plan.config)])
    strategy = read_config.trainer.strategy
    if not _is_robust(strategy):
        given = "" if strategy is None else getattr(strategy, "class_path", strategy)
        raise GridMistake(
            f"redteam attacks runs of RobustStrategy, and the strategy of {plan.config} is {given or 'null'}: "
            "give trainer.strategy.class_path: RobustStrategy, with f and aggregator."
        )
    refuse_without_wandb(plan.cells({"": (None, 0)}).loggers)
    arguments = _arguments(strategy)
    workers = _workers(arguments.workers, read_config.trainer)
    named = arguments.attackers
    if len(set(named)) < len(named) or not set(named) <= set(range(workers)):
        raise GridMistake(f"attackers={named}: give different ids from 0 to {workers - 1}, one per attacker.")
    count = _most(most, arguments.f, workers, named)
    others = [one for one in reversed(range(workers)) if one not in named]
    seed = read_config.seed_everything
    whole = replace(
        plan,
        seeds=plan.seeds or (seed if type(seed) is int else 0,),
        workers=workers,
        attackers=tuple([*named, *others][:count]),
        ahead=math.ceil(max(plan.processes, 1) / max(len(plan.seeds), 1)),
        own=spelt(arguments.attack.as_dict()) if arguments.attack else None,
    )
    first = len(whole.fixed)
    if whole.budget < first:
        raise GridMistake(
            f"budget={whole.budget}: {first} fixed attacks come first: give {first} or more, such as {3 * first}."
        )
    return whole


def _most(given: int | None, f: float | str, workers: int, named: Sequence[int]) -> int:
    if given is not None:
        if not 1 <= given < workers:
            raise GridMistake(
                f"attackers={given}: of {workers} workers at least 1 and at most {workers - 1} may attack."
            )
        return given
    known = len(named) if isinstance(f, str) else math.floor(f) if math.isfinite(f) else 0
    if not 1 <= known < workers:
        raise GridMistake(
            f"f={name_of(f)} of {workers} workers does not say how many may attack: give --attackers, such as --attackers 1."
        )
    return known


def _arguments(strategy: Any) -> Any:
    """Return the arguments of the strategy, which must have those that are written over, and those that say who may attack."""
    arguments = getattr(strategy, "init_args", None) or Namespace()
    if lacking := [name for name in ("workers", "f", "attackers", "attack") if name not in arguments]:
        raise GridMistake(
            f"{strategy.class_path} takes no {listed(lacking)}: redteam reads and writes them in the config, "
            "so its __init__ must take them and hand them to RobustStrategy."
        )
    return arguments


def _workers(given: int | None, trainer: Any) -> int:
    devices = trainer.devices
    if given is not None:
        workers = given
    elif isinstance(devices, list):
        workers = len(devices) * trainer.num_nodes
    elif str(devices).isdigit():
        workers = int(devices) * trainer.num_nodes
    else:
        raise GridMistake(
            f"devices={devices} does not say how many workers there are: give trainer.devices a number, such as 2."
        )
    if workers < 2:
        raise GridMistake(f"workers={workers}: redteam needs at least 2, of whom one may attack.")
    return workers


def _is_robust(strategy: Any) -> bool:
    module, _, name = str(getattr(strategy, "class_path", "")).rpartition(".")
    return bool(module) and issubclass(getattr(import_module(module), name), RobustStrategy)
