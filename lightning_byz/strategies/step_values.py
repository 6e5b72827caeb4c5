"""What several workers of a rank log in a step: one value each, reduced over all workers of all ranks once the step is done."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_byz.exchange import Exchange, Placement
from lightning_byz.strategies.inside_lightning import (
    description,
    keeping_values,
    listening,
    log_nothing,
    results_of,
    set_step_value,
    step_value,
)

MISSING, LOGGED, WITH_VALUE = 0, 1, 2


class StepValues:
    """Makes every rank log the same: the same keys in the same order, and for a step the reduction of all workers' values.

    Each turn, an attacker's too, counts alike. Epoch values are reduced over ranks, whatever ``sync_dist`` says, in the order of the keys,
    on which ranks agree when one of them logs a new one.

    Args:
        module: The user's module.
        exchange: Adds up over ranks.
        placement: Which workers live here.

    """

    def __init__(self, module: pl.LightningModule, exchange: Exchange, placement: Placement) -> None:
        self._module = module
        self._exchange = exchange
        self._placement = placement
        self._synchronized = placement.ranks > 1
        self._keys: list[str] = []
        self._logged: dict[int, dict[str, Tensor | None]] = {}

    @contextmanager
    def turn(self, seat: int) -> Iterator[None]:
        """Note what is logged in the block, a worker's turn on one of its batches."""
        results, heard = results_of(self._module.trainer), list[str]()
        kept = keeping_values(self._module.trainer) if any(self._logged.values()) else nullcontext()
        with kept, listening(results, heard.append, synchronized=self._synchronized):
            yield
        self._logged[seat] = {key: step_value(results[key]) for key in heard}

    def reduce(self) -> None:
        """Reduce what the workers have logged since the last call. Every rank must call it."""
        logged, self._logged = self._logged, {}
        if not (self._synchronized or any(logged.values())):
            return
        new = list(dict.fromkeys(key for own in logged.values() for key in own if key not in self._keys))
        unknown, states, values = self._table(logged, len(new))
        if unknown:
            self._agree(new)
            _, states, values = self._table(logged, 0)
        results = results_of(self._module.trainer)
        for key, present, own in zip(self._keys, states, values, strict=True):
            turns = [seat for seat, state in enumerate(present) if state == WITH_VALUE]
            if any(present) and results[key].has_reset:
                self._take_part(description(results[key]))
            if turns:
                set_step_value(results[key], own[turns])

    def _table(self, logged: dict[int, dict[str, Tensor | None]], new: int) -> tuple[int, list[list[int]], Tensor]:
        """Return how many keys some rank does not know yet, and for each known key what each turn has logged: whether, and the value."""
        n = self._placement.workers * self._placement.batches
        shape, device = (len(self._keys), n), self._module.device
        states = torch.zeros(shape, dtype=torch.int64)
        values = torch.zeros(shape, dtype=torch.float64, device=device)
        for seat, own in logged.items():
            for place, key in enumerate(self._keys):
                value = own.get(key)
                states[place, seat] = MISSING if key not in own else LOGGED if value is None else WITH_VALUE
                if value is not None:
                    values[place, seat] = value.detach().double().view(())
        facts = torch.cat([torch.tensor([new]), states.view(-1)]).to(device)
        summed = self._exchange.all_reduce(torch.cat([facts, values.view(torch.int64).view(-1)]))
        head = summed[: len(facts)].tolist()
        present = [head[1 + n * place : 1 + n * (place + 1)] for place in range(len(self._keys))]
        return head[0], present, summed[len(facts) :].view(torch.float64).view(shape)

    def _agree(self, new: Sequence[str]) -> None:
        """Learn the keys that were new to some rank, in the order of the ranks, and log all of them in one order."""
        results = results_of(self._module.trainer)
        own = json.dumps([[key, description(results[key])] for key in new]).encode()
        for key, described in [pair for text in self._gathered(own) for pair in json.loads(text)]:
            if key not in self._keys:
                self._keys.append(key)
            if key not in results:
                self._take_part(described)
        for key in self._keys:
            results[key] = results.pop(key)

    def _take_part(self, described: dict[str, Any]) -> None:
        log_nothing(self._module, results_of(self._module.trainer), described, synchronized=self._synchronized)

    def _gathered(self, text: bytes) -> list[bytes]:
        """Return every rank's text, by sums of tables in which each rank fills its own row."""
        rank, ranks, device = self._placement.rank, self._placement.ranks, self._module.device
        lengths = torch.zeros(ranks, dtype=torch.int64)
        lengths[rank] = len(text)
        known = self._exchange.all_reduce(lengths.to(device)).tolist()
        table = torch.zeros(ranks, max(known), dtype=torch.int64)
        table[rank, : len(text)] = torch.tensor(list(text), dtype=torch.int64)
        rows = self._exchange.all_reduce(table.to(device).view(-1)).view(table.shape).tolist()
        return [bytes(row[:length]) for row, length in zip(rows, known, strict=True)]
