"""The page of the default: accuracies by rule, partition and attack, and the cell in which each rule loses most."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from digits_training import BATCH, HIDDEN, LEARNING_RATE, WORKERS
from tables import markdown

from lightning_byz.aggregators import Mean
from lightning_byz.attacks import ALIE, IPM, Attack, ReverseGradient, SignFlip
from lightning_byz.estimators import Estimator, Gradient, WorkerMomentum

PAGE = Path(__file__).resolve().parent.parent / "docs" / "default.md"
BASE, UNATTACKED = Mean.__name__, "no attack"
BEARABLE = 5
"""Points of accuracy that the default may cost where nobody attacks."""

ATTACKERS = (8, 11)
ATTACKS: dict[str, Attack | None] = {
    UNATTACKED: None,
    "SignFlip": SignFlip(),
    "ALIE(z=1.5)": ALIE(z=1.5),
    "IPM": IPM(),
    "ReverseGradient": ReverseGradient(),
}


@dataclass(frozen=True)
class Setting:
    """What is asked of the rules, what workers send, and under which attacks."""

    title: str
    f: float | Literal["max"]
    estimator: Estimator = field(default_factory=Gradient)
    attacks: Sequence[str] = tuple(ATTACKS)


SETTINGS = [
    Setting("The largest f", "max"),
    Setting("f = 2", 2),
    Setting("f = 2, worker momentum", 2, WorkerMomentum(0.9)),
    Setting("f = 1, nobody attacks", 1, attacks=(UNATTACKED,)),
]


@dataclass(frozen=True)
class Cell:
    """One rule in one place: accuracies per seed, in percent, and f; or why it does not run."""

    accuracies: tuple[float, ...] = ()
    f: float = 0.0
    refusal: str = ""


Cells = Mapping[tuple[str, str, str, str], Cell]
"""By setting, rule, partition and attack."""


class Loss(NamedTuple):
    """The largest loss of a rule against the mean without attack on the same data, in points, and where it is."""

    points: float
    error: float
    place: str


def ranked(cells: Cells, names: Sequence[str], setting: Setting, partitions: Sequence[str]) -> dict[str, Loss]:
    """Return each rule's largest loss, from the best rule to the worst."""
    losses = {name: _largest(cells, name, setting, partitions, setting.attacks) for name in names}
    return dict(sorted(losses.items(), key=lambda item: item[1]))


def _largest(cells: Cells, name: str, setting: Setting, partitions: Sequence[str], attacks: Sequence[str]) -> Loss:
    return max(
        _loss(cells, name, setting, partition, attack)
        for partition in partitions
        for attack in attacks
        if not cells[setting.title, name, partition, attack].refusal
    )


def _loss(cells: Cells, name: str, setting: Setting, partition: str, attack: str) -> Loss:
    mine = cells[setting.title, name, partition, attack].accuracies
    base = cells[setting.title, BASE, partition, UNATTACKED].accuracies
    losses = [other - one for one, other in zip(mine, base, strict=True)]
    return Loss(statistics.fmean(losses), _error(losses), f"{partition}, {attack}")


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def header(setting: Setting) -> list[str]:
    """Return the columns' names."""
    return ["rule", "f", *setting.attacks, "largest loss, all three tables"]


def rows(cells: Cells, order: Mapping[str, Loss], setting: Setting, partition: str) -> list[list[str]]:
    """Return the lines of one partition's table."""
    lines = []
    for name, loss in order.items():
        own = [cells[setting.title, name, partition, attack] for attack in setting.attacks]
        numbers = [
            "refuses" if cell.refusal else f"{statistics.fmean(cell.accuracies):.1f} ± {_error(cell.accuracies):.1f}"
            for cell in own
        ]
        lines.append([name, f"{own[0].f:g}", *numbers, f"{loss.points:.1f} ± {loss.error:.1f} ({loss.place})"])
    return lines


def summary(order: Mapping[str, Loss]) -> str:
    """Return one line on a setting: what each rule loses where it loses most."""
    losses = [f"`{name}` {loss.points:.1f}" for name, loss in order.items()]
    return f"Loss in the worst cell, in points: {', '.join(losses)}."


def overview(cells: Cells, names: Sequence[str], partitions: Sequence[str]) -> str:
    """Return the table of largest losses, without attack and at all, in the order of the first setting."""
    header, lines = ["rule"], [[name] for name in ranked(cells, names, SETTINGS[0], partitions)]
    for setting in SETTINGS:
        header += [f"{setting.title}: no attack"] + ["worst cell"] * (len(setting.attacks) > 1)
        for line in lines:
            for attacks in ((UNATTACKED,), setting.attacks)[: min(len(setting.attacks), 2)]:
                line.append(f"{_largest(cells, line[0], setting, partitions, attacks).points:.1f}")
    return markdown(header, lines)


def choice(cells: Cells, names: Sequence[str], partitions: Sequence[str]) -> str:
    """Return in words which rule the first setting chooses: of those that cost little without attack, the one with the smallest worst cell."""
    setting = SETTINGS[0]
    prices = {name: _largest(cells, name, setting, partitions, (UNATTACKED,)).points for name in names if name != BASE}
    cheap = [name for name, price in prices.items() if price < BEARABLE]
    if not cheap:
        return f"No rule costs less than {BEARABLE} points on each kind of data where nobody attacks."
    order = ranked(cells, list(prices), setting, partitions)
    first, best = next(iter(order)), next(name for name in order if name in cheap)
    dear = [price for name, price in prices.items() if name not in cheap]
    text = (
        f'`strategy="robust"` runs one rule with `f="max"`, for whoever names it, also where nobody attacks. There, {len(cheap)} of'
        f" {len(prices)} rules cost less than {BEARABLE} points on each kind of data"
        f"{f', and the others {min(dear):.1f} to {max(dear):.1f}' if dear else ''}. Among those below {BEARABLE}, `{best}`"
        f" ({prices[best]:.1f} points) loses least in its worst cell. That cell is {order[best].place}, with {order[best].points:.1f} points."
    )
    if first != best:
        text += (
            f" By worst cells alone it would be `{first}`, with {order[first].points:.1f} points, of which {prices[first]:.1f} are lost where"
            " nobody attacks. Who expects attacks on skewed data does better with an f that is known, and a rule of the sections below."
        )
    return text


def page(cells: Cells, names: Sequence[str], partitions: Sequence[str], *, command: str, seeds: int, steps: int) -> str:
    """Return the page."""
    text = f"""# The table that chooses the default

```bash
{command}
```

A network of one hidden layer of {HIDDEN} learns scikit-learn's handwritten digits from {WORKERS} workers, batches of {BATCH}, {steps} steps
of SGD with learning rate {LEARNING_RATE}. Workers {" and ".join(map(str, ATTACKERS))} attack. With unequal sizes the weights are the sizes,
and these two are among the heaviest. Cells hold the accuracy on held-out digits in percent, mean and standard error over {seeds} seeds, each
the mean of five moments in the last fifth of the steps. A loss is against `Mean` without attack on the same data and for the same seeds, in
points. The last column is the largest of a section's three tables, with the standard error of the difference; by it, lines are sorted from
best to worst. A run that stops because too many messages are not finite counts as a guess, 10 %.

Rules have default arguments, which are not tuned to this problem; `Mean` runs with f = 0; `MoNNA` trusts worker 0, who is honest here.
`ALIE` has `z=1.5`, since its own formula gives 0 for 2 attackers of 12; the other attacks have default arguments. `WorkerMomentum(0.9)`
is an exponential *average* of gradients, as long as a gradient in the long run, so the learning rate is the same with and without it.
Under Dirichlet(0.1) some digits are with attackers only, or nearly: they are lost to every rule that leaves attackers out, which is
what all rules lose that agree under `ReverseGradient`.

## Largest losses, in points

{choice(cells, names, partitions)}

{overview(cells, names, partitions)}"""
    for setting in SETTINGS:
        order = ranked(cells, names, setting, partitions)
        text += f"\n## {setting.title}\n\n{summary(order)}\n"
        for partition in partitions:
            text += f"\n{partition}:\n\n{markdown(header(setting), rows(cells, order, setting, partition))}"
    return text
