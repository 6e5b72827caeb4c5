"""A plain loop's run: its workers' turns, the steps of its optimizer, and what files hold of both."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from struct import pack, unpack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.attacks import Attack
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.memory import Memory
from lightning_byz.optimizers.plain_turns import Backward, Closure, PlainTurns, Position
from lightning_byz.rounds import Aggregation, MemoryFile, Report, Robust, WorkerBuffers
from lightning_byz.rounds.checkpoint import refuse_other_run, restore_buffers
from lightning_byz.rounds.drift import refuse_drifted
from lightning_byz.rounds.trained import held_by, trained_by


class PlainRun:
    """Everything that lives as long as a :class:`RobustOptimizer`.

    Args:
        optimizer: Steps on the aggregate.
        module: What the closures evaluate.
        round: What a step is.
        exchange: How messages reach the rules.
        placement: Which workers live here.
        buffers: Their buffers.
        digest_every: Steps between two comparisons of all ranks' parameters; ``None`` for none.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        round: Robust,
        exchange: Exchange,
        placement: Placement,
        *,
        buffers: WorkerBuffers,
        digest_every: int | None,
    ) -> None:
        device, seed = trained_by(optimizer)[0].device, round.defence.seed
        self.optimizer = optimizer
        self.module = module
        self.round = round
        self.exchange = exchange
        self.placement = placement
        self.aggregation = Aggregation(round, exchange, placement, device=device)
        self.turns = PlainTurns(
            optimizer, module, self.aggregation, placement, buffers=buffers, seed=seed, device=device
        )
        self.report: Report | None = None
        """What the last step did with each worker."""
        self._buffers = buffers
        self._file = MemoryFile(exchange, placement, device=device)
        self._digest_every = digest_every
        self._steps = 0
        self._waits = self._asked = self._agreed = False
        self._saved_buffers: Mapping[str, Any] | None = None

    # ------------------------------------------------------------------ steps

    @property
    def computing(self) -> list[int]:
        """The local workers that take a turn at this step."""
        computing = self.round.computing(self.aggregation.memory.step)
        return [worker for worker in self.placement.local if worker in computing]

    def poisoned(self, worker: int, batch: Any, position: Position) -> Any:
        """Return what an attacker makes of its batch; the batch itself for others."""
        if worker in self.placement.local and worker not in self.computing:
            return batch
        turn, self._asked = self.turns.of(worker, position)[-1], True
        return self.round.poisoned(turn, batch) if turn.attacks else batch

    def backward(self, worker: int, closure: Closure, backward: Backward, position: Position) -> Tensor | None:
        """Take a worker's turns on one batch; a step that was not to be taken is over."""
        if self._waits and self.report is not None and self.report.taken:
            raise RuntimeError(
                "robust.backward came after robust.aggregate() and before the step on that aggregate: call robust.step() first, or robust.zero_grad()"
                " to drop it, as after a step that a GradScaler has skipped."
            )
        self._waits = False
        if worker in self.placement.local and worker not in self.computing:
            return None
        self._restore_buffers()
        self._warn_of_clean_batches(worker)
        return self.turns.take(worker, closure, backward, position)

    def _warn_of_clean_batches(self, worker: int) -> None:
        """Warn where attackers would attack by their batches, which nobody has asked for."""
        attack, acting = self.round.attackers.attack, self.round.attackers.acting
        if attack is not None and worker in acting and not self._asked and type(attack).poison is not Attack.poison:
            self._asked = True
            warnings.warn(
                f"worker {worker} attacks with {attack!r}, which changes batches, and computes on one that was not changed: let the closure use"
                " robust.poisoned(worker, batch).",
                stacklevel=4,
            )

    def aggregate(self, *, diagnose: bool = False) -> Report:
        """Replace the local workers' gradients by the aggregate, once a step. Every rank must call it."""
        if self._waits and self.report is not None:
            return self.report
        self._restore_buffers()
        self.turns.ready()
        try:
            sent = self.turns.sent()
            scale = self._agreed_scale(bool(sent))
            report = self.aggregation.step(sent, scale=scale, diagnose=diagnose)
        except Exception:
            self.forget()
            raise
        for parameter in (one for group in self.optimizer.param_groups for one in group["params"]):
            if not parameter.requires_grad:
                parameter.grad = None  # nobody else has seen it
        self._buffers.adopt(report.adopted, waiting=self.round.waiting(self.aggregation.memory))
        self.turns.forget()
        self.turns.next_step()
        self._waits, self.report = True, report
        if scale is not None:
            self.show_scalers()
        return report

    def _agreed_scale(self, sent: bool) -> float | None:
        """Return the gradient scaler's scale, which a rank where nobody has computed yet hears from others. Every rank must call it."""
        scale, ranks = self.turns.scale, self.placement.ranks
        if self._agreed or ranks == 1:
            return scale
        facts = [sent, scale is not None, 0 if scale is None else unpack("i", pack("f", scale))[0]]
        told = self.exchange.all_reduce(torch.tensor(facts, dtype=torch.int64, device=self.turns.device))
        senders, hearers, bits = told.tolist()
        self._agreed = hearers == ranks or (senders > 0 and hearers == 0)
        return scale if scale is not None or not hearers else unpack("f", pack("i", bits // hearers))[0]

    def step(self) -> Report:
        """Let the optimizer step on the aggregate, unless it was not to be taken."""
        report = self.aggregate()
        self._waits = False
        if report.taken:
            self.optimizer.step()
            found = getattr(self.optimizer, "found_inf", None)
            if found is None or not bool(found):
                self.aggregation.stepped()
            else:
                self.aggregation.withdraw()
        elif report.without_gradients:
            self.optimizer.zero_grad()
        self._steps += 1
        if self._digest_every is not None and self._steps % self._digest_every == 0 and self.placement.ranks > 1:
            held = held_by(self.module, [self.optimizer])
            refuse_drifted(held, self.exchange, self.placement, steps=self._steps)
        return report

    def show_scalers(self) -> None:
        """Give a gradient scaler, which cannot do without, a gradient to look at where nobody has sent one."""
        if self._waits and self.report is not None and self.report.without_gradients:
            first = trained_by(self.optimizer)[0]
            first.grad = torch.zeros_like(first)

    def forget(self) -> None:
        """Drop what was sent, with the buffers that it has changed, and an aggregate that nobody has stepped on."""
        self.turns.forget()
        self.aggregation.withdraw()
        self._buffers.adopt([False] * self.placement.workers, waiting=self.round.waiting(self.aggregation.memory))
        self._waits = False

    # ------------------------------------------------------------------ buffers and files

    def show_consensus(self) -> None:
        """Put what all workers' buffers have in common into the module, until a worker computes again. Every rank must call it."""
        self._restore_buffers()
        weights = self.round.worth(self.aggregation.memory)
        self._buffers.show(self._buffers.consensus(self.exchange, self.placement, weights))

    def memories(self) -> dict[str, Any]:
        """Return what a file must hold. Every rank must call it; rank 0's is whole."""
        self._restore_buffers()
        opened = {0: self.aggregation} if self.aggregation.opened else {}
        with self.aggregation.withdrawn():
            return self._file.collect(opened, self._buffers.decided(), seed=self.round.defence.seed)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from a file; without memories in it, the workers start anew."""
        if saved is None:
            self.aggregation.memory = Memory()
            if self.placement.rank == 0:
                warnings.warn(
                    "The state was saved without lightning_byz: the workers start with empty memories.", stacklevel=3
                )
        else:
            refuse_other_run(saved, self.placement.workers)
            known, seed = self.round, int(saved["seed"])
            keyed = {"defence": replace(known.defence, seed=seed), "channel": replace(known.channel, seed=seed)}
            self.round = self.aggregation.round = replace(known, **keyed)
            try:
                self._file.restore(saved, dict.fromkeys(saved["optimizers"], self.aggregation), self._buffers)
            except ValueError:
                self.round = self.aggregation.round = known
                raise
            if not saved["optimizers"]:
                self.aggregation.memory = Memory()
            self._saved_buffers = saved
        self.turns.restart(self.round.defence.seed)
        self._waits = self._agreed = False

    def _restore_buffers(self) -> None:
        """Give the workers their buffers of a file once the module is in place, whichever was loaded first."""
        saved, self._saved_buffers = self._saved_buffers, None
        if saved is not None:
            restore_buffers(saved, self._buffers)
