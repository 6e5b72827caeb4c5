"""The table of the workers that ends a fit."""

from collections.abc import Sequence

from rich.table import Table

from lightning_byz.metrics import WorkerMeans


def table(totals: WorkerMeans, *, attackers: Sequence[int], weights: Sequence[float | int] | None = None) -> Table:
    """Return one line per worker, not wider than a terminal; columns of what happened to nobody are left out."""
    means, steps = totals.means(), int(totals.steps)
    result = Table(title=f"Workers over {steps} steps", caption=_caption(totals), title_justify="left")
    result.add_column("worker", no_wrap=True)
    happened = [name for name in ("broken", "absent") if means[name].any()]
    for column in (*(["weight"] if weights else []), "mean share", "left out", *happened, "distance"):
        result.add_column(column, justify="right", no_wrap=True)
    for worker in range(totals.workers):
        name = f"{worker} (attacks)" if worker in attackers else str(worker)
        weight = [f"{weights[worker]:.4g}"] if weights else []
        times = [f"{means[count][worker]:.0f}" for count in ("left_out", *happened)]
        share, distance = float(means["coefficient"][worker]), float(means["distance"][worker])
        result.add_row(name, *weight, _told(share, ".4f"), *times, _told(distance, ".4g"))
    return result


def _caption(totals: WorkerMeans) -> str:
    line, measured, steps = "left out: no share in the aggregate of a step", int(totals.measured), int(totals.steps)
    return line if measured == steps else f"{line}\ndistances: means of {measured} of {steps} steps"


def _told(value: float, form: str) -> str:
    return format(value, form) if value == value else "-"
