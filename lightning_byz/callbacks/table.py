"""The table of the workers that ends a fit."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from lightning_byz.metrics import Deliveries, WorkerMeans

_HEADERS = {"left_out": "left out", "named": "named as liar"}


def table(totals: WorkerMeans, *, attackers: Sequence[int], weights: Sequence[float | int] | None = None) -> Table:
    """Return one line per worker, not wider than a terminal; columns of what happened to nobody are left out."""
    means, steps = totals.means(), int(totals.steps)
    result = Table(title=f"Workers over {steps} steps", caption=_caption(totals), title_justify="left")
    result.add_column("worker", no_wrap=True)
    out, far = ("named", []) if "named" in means else ("left_out", ["distance"])
    happened = [name for name in ("broken", "absent") if means[name].any()]
    for column in (*(["weight"] if weights else []), "mean share", _HEADERS[out], *happened, *far):
        result.add_column(column, justify="right", no_wrap=True)
    for worker in range(totals.workers):
        weight = [f"{weights[worker]:.4g}"] if weights else []
        times = [f"{means[count][worker]:.0f}" for count in (out, *happened)]
        share = _told(float(means["coefficient"][worker]), ".4f")
        last = [_told(float(means[name][worker]), ".4g") for name in far]
        result.add_row(_name(worker, attackers), *weight, share, *times, *last)
    return result


def delivered_table(totals: Deliveries, *, attackers: Sequence[int], rates: Mapping[int, float] | None = None) -> Table:
    """Return one line per stale worker: what was accepted of it, what part of all weight that has, how old it was, and its rate if known."""
    means = totals.means()
    caption = "weight: part of all weight at the last step\nage: steps since the message in use was computed"
    result = Table(title="What they delivered", caption=caption, title_justify="left")
    result.add_column("worker", no_wrap=True)
    for column in ("delivered", *(["per second"] if rates else []), "weight", "mean age", "oldest"):
        result.add_column(column, justify="right", no_wrap=True)
    for worker in range(totals.workers):
        delivered, weight, age, oldest = (float(means[one][worker]) for one in ("delivered", "weight", "age", "oldest"))
        rate = [_told(rates[worker], ".4g")] if rates else []
        cells = _told(delivered, ".0f"), *rate, _told(weight, ".4f"), _told(age, ".2f"), _told(oldest, ".0f")
        result.add_row(_name(worker, attackers), *cells)
    return result


def _name(worker: int, attackers: Sequence[int]) -> str:
    return f"{worker} (attacks)" if worker in attackers else str(worker)


def _caption(totals: WorkerMeans) -> str:
    if totals.coded > 0:
        return "named as liar: the row did not fit what the group sent,\nand was left out of that step"
    line, measured, steps = "left out: no share in the aggregate of a step", int(totals.measured), int(totals.steps)
    return line if measured == steps else f"{line}\ndistances: means of {measured} of {steps} steps"


def _told(value: float, form: str) -> str:
    return format(value, form) if value == value else "-"
