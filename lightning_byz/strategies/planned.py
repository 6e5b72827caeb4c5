"""From a strategy's arguments to the rules and rounds of its run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_byz.aggregators import Aggregator
from lightning_byz.arrivals import Arrivals
from lightning_byz.attacks import Attack
from lightning_byz.codes import Code
from lightning_byz.compressors import Compressor
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.links import Downlink, Link
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds import Attackers, Defence, Round, start_up
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.weights import gathered_sizes
from lightning_byz.strategies.worker_strategy import WorkerStrategy


class PlannedStrategy(WorkerStrategy):
    """A strategy whose steps are robust rounds; the attributes are the arguments of :class:`RobustStrategy`."""

    f: Any
    aggregator: Aggregator
    preaggregators: Sequence[PreAggregator]
    estimator: Estimator
    attackers: Sequence[int]
    attack: Attack | None
    arrivals: Arrivals
    weights: Any
    max_share: float | None
    age_decay: float | None
    link: Link
    compressor: Compressor
    downlink: Downlink | None
    code: Code | None
    _defence: Defence | None

    @property
    def worker_weights(self) -> Sequence[float] | None:
        """How much each worker counts in the present run; ``None`` where all count alike."""
        return None if self._defence is None else self._defence.weights

    @property
    def plan(self) -> Plan:
        """What steps are made of besides the rules."""
        attackers = Attackers(self.attackers, self.attack)
        weights = self.weights, self.max_share, self.age_decay
        ways = self.link, self.compressor, self.downlink
        return Plan(self.estimator, attackers, self.arrivals, *weights, *ways, self.code)

    def round(self, defence: Defence) -> Round:
        """Return what a step of one optimizer is, behind these rules."""
        return self.plan.round(defence)

    def _weigh(self, sizes: Mapping[int, int | None]) -> None:
        """Weigh the workers by their shards, now that the loaders are there."""
        assert self._run is not None
        exchange, placement = self._run.exchange, self._run.placement
        given = gathered_sizes(sizes, exchange, workers=placement.workers, device=self.root_device)
        self._begin(self._fitting(given, exchange, placement))

    def _begin(self, defence: Defence) -> None:
        """Run the steps to come behind these rules."""
        assert self._run is not None
        self.f, self._defence = defence.f, defence
        self._run.begin(lambda index: self.round(replace(defence, optimizer=index)))
        parameters = sum(parameter.numel() for parameter in self._run.module.parameters() if parameter.requires_grad)
        known = {"anytime": self.anytime, "parameters": parameters}
        self._announce(start_up.start_up_line(defence, self._run.exchange, self._run.placement, self.plan, **known))

    def _fitting(self, given: Sequence[float | int] | None, exchange: Exchange, placement: Placement) -> Defence:
        """Return the rules, tried on as many rows as there are workers."""
        assert self.lightning_module is not None
        rules, steps = (self.aggregator, self.preaggregators), self.lightning_module.trainer.max_steps
        end = {"seed": self.seed, "steps": None if steps < 0 else steps}
        return start_up.planned_defence(self.f, rules, self.plan, given, exchange, placement, **end)
