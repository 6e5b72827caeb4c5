"""How a law runs a rule: with a generator where it draws, always of the same seed."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require

_SEED = 12345


def draw(rule: Any) -> dict[str, torch.Generator]:
    """A generator of the one seed, as a keyword argument, where the rule draws."""
    return {"generator": torch.Generator().manual_seed(_SEED)} if rule.random else {}


def run(rule: Aggregator, stack: Stack) -> Tensor:
    """The aggregate."""
    return rule(stack, **draw(rule))


def explain(rule: Aggregator, stack: Stack) -> tuple[Tensor, Tensor | None]:
    """The aggregate and its coefficients."""
    return rule.explain(stack, **draw(rule))


def reference(case: Case, rule: Any, d: int, dtype: torch.dtype = torch.float64) -> Tensor | None:
    """For a rule that reads it: none as in the first step, or a point near the rows, or one far from them."""
    size = case.one_of([None, 1.0, 1.0, 1e3]) if rule.uses_reference else None
    case.note(**({"reference": "none" if size is None else f"of size {size:g}"} if rule.uses_reference else {}))
    return None if size is None else (case.normal(d) * size).to(dtype)


class Watch:
    """Keeps an eye on the global random streams of torch and numpy from when it is made."""

    def __init__(self) -> None:
        self._before = self._now()

    def require_untouched(self) -> None:
        """Raise ``Broken`` if one of them has changed since."""
        now = self._now()
        changed = [name for name, before in self._before.items() if now[name] != before]
        require(not changed, f"the global random state of {' and '.join(changed)} has changed")

    def _now(self) -> dict[str, Any]:
        state: Any = np.random.get_state()  # noqa: NPY002 - the global stream is what is watched
        return {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": (state[1].tobytes(), state[2])}
