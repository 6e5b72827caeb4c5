"""What a user might write in a file of their own: the library knows none of it."""

from dataclasses import dataclass, replace

import torch

from lightning_byz.attacks import Attack
from lightning_byz.estimators import Estimator
from lightning_byz.memory import Sliced
from lightning_byz.rounds import Robust
from lightning_byz.strategies import RobustStrategy


@dataclass(frozen=True)
class TwoAverages(Estimator):
    """A fast and a slow average, and how long this worker's gradients have been, all told."""

    fast: float = 0.5
    slow: float = 0.9

    def init(self, like):
        return {"fast": torch.zeros_like(like), "slow": torch.zeros_like(like, dtype=torch.float64), "length": 0.0}

    def update(self, memory, gradients, *, count):
        (gradient,) = gradients
        fast = memory["fast"] * self.fast + gradient * (1 - self.fast)
        slow = memory["slow"] * self.slow + gradient * (1 - self.slow)
        length = memory["length"] + float(gradient.double().norm())
        step = (fast + slow.to(fast.dtype)) / (1 + length / (10 * (count + 1)))
        return step, {"fast": fast, "slow": slow, "length": length}


@dataclass(frozen=True)
class Echo(Attack):
    """Send all that one would have sent in the last steps, the oldest loudest, backwards and in noise."""

    @property
    def remembers(self):
        return 3

    def replace(self, sight):
        rows = sight.own
        for place, worker in enumerate(sight.attackers):
            for age, row in enumerate(reversed(sight.past[worker])):
                rows[place] -= (age + 1) * row
            rows[place] *= 1 + 0.1 * torch.rand((), generator=sight.generator)
        return rows


class WithLedger(Robust):
    """Keeps a table of what each row was, smoothed, at the rules' side, and lets it pull the aggregate."""

    def take(self, memory, sent, wire, *, parameters, scale=None, diagnose=False):
        vector, left, report = super().take(memory, sent, wire, parameters=parameters, scale=scale, diagnose=diagnose)
        if vector is None:
            return vector, left, report
        part = wire.slice
        own = (vector if part is None else vector[part.start : part.stop]).clone()  # the whole lies where the next will
        old = (
            memory.rules["ledger"].values["table"]
            if "ledger" in memory.rules
            else own.new_zeros(self.workers, len(own))
        )
        table = old * 0.5 + torch.arange(1.0, self.workers + 1).to(own.dtype)[:, None] * own
        whole = wire.assemble((own + 0.01 * table[-1]).contiguous())
        rules = {**left.rules, "ledger": Sliced({"table": table, "last": own}, part)}
        return whole, replace(left, rules=rules), report


class LedgerStrategy(RobustStrategy):
    """The strategy with that round."""

    def round(self, defence):
        known = super().round(defence)
        return WithLedger(known.defence, known.estimator, known.attackers)
