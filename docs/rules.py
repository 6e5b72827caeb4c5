"""Writes docs/rules.md from the classes: ``python docs/rules.py``."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_byz import aggregators, preaggregators
from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.preaggregators import PreAggregator

CASES = [(10, 1), (10, 2), (17, 4), (17, 8)]
HEAD = """# What the rules promise

Made from the classes by `python docs/rules.py`. `W` is the total weight, with unit weights the number of workers `n`; `f` the weight that may be
Byzantine. `kappa` bounds the squared distance of the result from the honest rows' mean by `kappa` times their variance, whatever `f` rows hold;
[bounds.md](bounds.md) proves each. In the columns with numbers, "-" means that no bound is known, "no" that the rule refuses. Weights: "exact" means
that a row of weight 2 counts as the row twice, "equal only" that unequal ones are refused. Exceptions are laws of the contract suite that the
definition does not keep: agreement (equal rows give that row), breakdown (huge rows of `f` workers do not drag the result along), permutation,
repetition, scaling, translation.
"""


def families() -> Iterator[tuple[str, list[Any]]]:
    """Each family's title, and its rules with defaults; a rule over another one is over the coordinate-wise median."""
    for title, family in (("Aggregators", aggregators), ("Pre-aggregators, with what follows them", preaggregators)):
        classes = [getattr(family, name) for name in sorted(family.__all__, key=str.lower)]
        yield title, [_built(rule) for rule in classes if not inspect.isabstract(rule)]


def _built(rule: type) -> Any:
    required = [
        name for name, parameter in inspect.signature(rule).parameters.items() if parameter.default is parameter.empty
    ]
    return rule(**dict.fromkeys(required, CoordinateMedian()))


def _formula(rule: Any) -> str:
    """The formula that the docstring of ``kappa`` states, or a dash."""
    own = type(rule).kappa.__doc__ or ""
    inherited = type(rule).kappa in (Aggregator.kappa, PreAggregator.kappa)
    return "-" if inherited else re.sub(r"\s+", " ", own.split("\n\n")[0]).rstrip(".").replace("``", "`")


def _value(rule: Any, n: int, f: int) -> str:
    """``kappa``; for a pre-aggregator, followed by the coordinate-wise median."""
    following = CoordinateMedian()
    if isinstance(rule, Aggregator):
        kappa = rule.kappa(n, f) if rule.tolerates([1.0] * n, f) else "no"
    elif rule.tolerates([1.0] * n, f) and following.tolerates([1.0] * n, rule.hands_on(f)):
        kappa = rule.kappa(n, f, following.kappa(n, rule.hands_on(f)))
    else:
        kappa = "no"
    return "-" if kappa is None else kappa if isinstance(kappa, str) else f"{kappa:.3g}"


def _cost(rule: Any) -> str:
    """The paragraph of the docstring that begins with the cost."""
    found = re.search(r"Cost: (.*?)(?:\n\n|$)", inspect.cleandoc(type(rule).__doc__ or ""), re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r":math:`(.*?)`", r"$\1$", found.group(1).replace("\n", " "))) if found else "-"


def _line(rule: Any) -> str:
    weights = "exact" if rule.unequal_weights else "equal only"
    exceptions = ", ".join(sorted(rule.exceptions)) or "-"
    numbers = " | ".join(_value(rule, n, f) for n, f in CASES)
    draws = "yes" if rule.random else "-"
    return f"| `{type(rule).__name__}` | `{rule.condition}` | {_formula(rule)} | {numbers} | {weights} | {exceptions} | {draws} | {_cost(rule)} |"


def text() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, rules in families():
        columns = [
            "rule",
            "tolerates",
            "kappa",
            *(f"n = {n}, f = {f}" for n, f in CASES),
            "weights",
            "exceptions",
            "draws",
            "cost",
        ]
        lines += [
            f"## {title}\n",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *(_line(rule) for rule in rules),
            "",
        ]
    lines.append("Pre-aggregators' numbers are for `CoordinateMedian` behind them; `CTMA` is over `CoordinateMedian`.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = Path(__file__).with_suffix(".md")
    page.write_text(text())
    sys.stdout.write(f"wrote {page}\n")
