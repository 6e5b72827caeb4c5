"""How the axes of a grid lie in figures: one axis across, such as the attacks, the others down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_byz.compare.cells import Cells
from lightning_byz.compare.grid import Axis
from lightning_byz.compare.records import Record
from lightning_byz.compare.summaries import Records, Row, Spread

Curve = Sequence[tuple[float, Spread]]


@dataclass(frozen=True)
class Layout:
    """The rows of a summary by place.

    Args:
        across: The axis across; ``None`` where there is one axis only.
        down: What the others are called together.
        places: For each name down and across, the summary's row.
    """

    across: Axis | None
    down: str
    places: Mapping[tuple[str, str], Row]

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """The names down and across, in order."""
        return list(dict.fromkeys(down for down, _ in self.places)), list(
            dict.fromkeys(right for _, right in self.places)
        )


def layout_of(cells: Cells, rows: Sequence[Row]) -> Layout:
    """Lay the rows out: across go attacks, or else the second axis."""
    axes = cells.grid.axes
    attacks = [axis for axis in axes if "attack" in axis.name or any(".attack" in path for path in axis.paths)]
    across = (attacks or [*axes[1:], None])[0] if len(axes) > 1 else None
    others = [axis.name for axis in axes if axis is not across]
    return Layout(
        across,
        ", ".join(others),
        {
            (
                ", ".join(row.variant.names[name] for name in others),
                row.variant.names[across.name] if across else "",
            ): row
            for row in rows
        },
    )


def over_steps(row: Row, records: Records, metric: str) -> Curve:
    """Return the metric at each step at which all finished runs evaluated."""
    return _together(
        [{one.step: one.metrics.get(metric) for one in run.evaluations} for run in _finished(row, records)]
    )


def over_bytes(row: Row, records: Records, metric: str) -> Curve:
    """Return the metric by megabytes of the workers' messages, of runs that say."""
    runs = [
        {one.messages / 1e6: one.metrics.get(metric) for one in run.evaluations if one.messages}
        for run in _finished(row, records)
        if run.evaluations and run.evaluations[-1].messages
    ]
    return _together(runs)


def differ_in_bytes(layout: Layout, records: Records) -> bool:
    """Whether messages take more in some runs than in others, step by step."""
    ends = [run.evaluations[-1] for row in layout.places.values() for run in _finished(row, records) if run.evaluations]
    return len({one.messages / one.step for one in ends if one.messages and one.step}) > 1


def over_rates(cells: Cells, row: Row, records: Records) -> Curve:
    """Return the metric over the seeds that tune, by the value of the only tuned path, where that is a number."""
    curve = []
    for values, runs in cells.tuning(row.variant):
        (value,) = values.values()
        scores = [records[run.id].last(cells.grid.metric) for run in runs if run.id in records]
        known = [score for score in scores if score is not None]
        if isinstance(value, (int, float)) and known:
            curve.append((float(value), Spread.of(known)))
    return sorted(curve, key=lambda point: point[0])


def worst(layout: Layout, mode: str) -> dict[str, tuple[str, Row]]:
    """Return for each name down where across it does worst; a variant without a finished run is the worst of all."""
    found = {}
    for name in layout.names[0]:
        mine = [(right, row) for (down, right), row in layout.places.items() if down == name]
        sign = 1 if mode == "max" else -1
        found[name] = min(
            mine, key=lambda one: -math.inf if math.isnan(one[1].score.mean) else sign * one[1].score.mean
        )
    return found


def _finished(row: Row, records: Records) -> list[Record]:
    kept = [records[cell.id] for cell in row.cells if cell.id in records]
    return [record for record in kept if not record.failure]


def _together(runs: Sequence[Mapping[float, float | None]]) -> Curve:
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    found = {place: [value for run in runs if (value := run[place]) is not None] for place in shared}
    return [(place, Spread.of(values)) for place, values in found.items() if len(values) == len(runs)]
