"""Tables that are whole wherever they are printed, and what their cells say of ratios."""

import statistics
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 200


def console() -> Console:
    """Return a console as wide as the terminal; a pipe or a file has no width, and gets lines as long as the tables need."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def table(title: str, *columns: str, names: int = 1) -> Table:
    """Return an empty table: the first columns are of names, the others of numbers."""
    result = Table(title=title)
    for place, column in enumerate(columns):
        result.add_column(column, justify="left" if place < names else "right", no_wrap=True)
    return result


def spread(mine: Sequence[float], base: Sequence[float]) -> tuple[str, str]:
    """Return the median of the pairs' ratios, and the smallest and the largest of them."""
    ratios = [one / other for one, other in zip(mine, base, strict=True)]
    return f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} - {max(ratios):.2f}"


def shown(values: Sequence[float], *, sign: str = "") -> str:
    """Return the mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):{sign}.1f} ± {error:.1f}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table for a page: first cells are names of code, the others numbers."""
    text = f"| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}\n"
    return text + "".join(f"| {' | '.join([f'`{line[0]}`', *line[1:]])} |\n" for line in lines)
