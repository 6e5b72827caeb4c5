"""The tables of the study of meta-aggregation, of what ``lightning-byz compare`` has left; docs/studies/ctma.md.

    lightning-byz compare --config configs/studies/ctma.yaml --set data.folder=folder/with/mnist
    python benchmarks/study.py runs/compare/ctma/results.csv

Accuracies in percent after the last round, mean and standard error over seeds; differences are taken seed by seed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jsonargparse import auto_cli
from kept_runs import Scores, paired, read_scores
from tables import markdown, shown

AXES = ("rule", "attack", "method")
BASES = ("median", "geometric median")
Column = tuple[str, str]
"""Attack and method."""


def pairs_of_rules() -> Iterator[tuple[str, str]]:
    """Return what is compared with what."""
    for base in BASES:
        yield f"{base} + CTMA", base
        yield f"NNM + {base}", base
        yield f"{base} + CTMA", f"NNM + {base}"
    yield BASES[1], BASES[0]


def difference(scores: Scores, one: Sequence[str], other: Sequence[str]) -> str:
    """Return the mean of the paired differences, with its standard error."""
    found = paired(scores.get(tuple(one), {}), scores.get(tuple(other), {}))
    return shown(found, sign="+") if found else "-"


def main(results: Path) -> None:
    """Print three tables in Markdown.

    Args:
        results: The file of all evaluations.
    """
    scores = read_scores(results, AXES)
    rules, attacks, methods = (list(dict.fromkeys(names)) for names in zip(*scores, strict=True))
    columns = [(attack, method) for attack in attacks for method in methods]
    header = [f"{attack}, {method}" for attack, method in columns]

    def table(first: str, names: Sequence[str], cell: Callable[[int, Column], str]) -> str:
        return markdown(
            [first, *header], [[name, *(cell(place, one) for one in columns)] for place, name in enumerate(names)]
        )

    def accuracy(place: int, column: Column) -> str:
        found = scores.get((rules[place], *column), {})
        return shown(list(found.values())) if found else "-"

    pairs = [(one, other) for one, other in pairs_of_rules() if {one, other} <= set(rules)]
    print(table("rule", rules, accuracy))
    print(
        table(
            "difference",
            [f"{one} - ({other})" for one, other in pairs],
            lambda place, column: difference(scores, (pairs[place][0], *column), (pairs[place][1], *column)),
        )
    )
    if {"mu2", "momentum"} <= set(methods):
        lines = [
            [rule, *(difference(scores, (rule, attack, "mu2"), (rule, attack, "momentum")) for attack in attacks)]
            for rule in rules
        ]
        print(markdown(["mu2 - momentum", *attacks], lines))


if __name__ == "__main__":
    auto_cli(main)
