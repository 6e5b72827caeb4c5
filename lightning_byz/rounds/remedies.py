"""What to change where a rule does not tolerate what any f unequal workers weigh, and what each change costs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lightning_byz.errors import ToleranceError
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.weights import ROUNDING, worker_weights


def refused(defence: Defence, error: ToleranceError) -> ToleranceError:
    """Return the refusal, with what is unequal in it and the ways out; as it is where unequal weights are not the reason."""
    if defence.weights is None or not tolerated(replace(defence, f=0.0)):
        return error
    n, weights = defence.workers, defence.weights
    order = sorted(range(n), key=weights.__getitem__, reverse=True)
    heavy, ways = sorted(order[: math.ceil(defence.f)]), list(_ways(defence))
    offered = f" Give {', or '.join(ways)}." if ways else ""
    return ToleranceError(
        f"{error}. f = {defence.f:g} means any {defence.f:g} of the {n} workers, and the heaviest, of {heavy}, have"
        f" {defence.f_weight:.4g} of the weight {sum(weights):.4g}.{offered}"
    )


def tolerated(defence: Defence) -> bool:
    """Whether the rules run with this f and these weights."""
    try:
        defence.check()
    except ToleranceError:
        return False
    return True


def largest_share(defence: Defence) -> tuple[float, Defence] | None:
    """Return the largest ``max_share``, in hundredths, with which the rules tolerate f, and the defence that it makes."""
    assert defence.weights is not None
    positive = sum(weight > 0 for weight in defence.weights)
    top = math.floor(100 * max(defence.weights) / sum(defence.weights))
    for share in (hundredths / 100 for hundredths in range(top, 0, -1)):
        if share * positive < 1 - ROUNDING:
            return None
        weights = worker_weights(defence.weights, share, workers=defence.workers)
        if tolerated(changed := replace(defence, weights=weights)):
            return share, changed
    return None


def _ways(defence: Defence) -> Iterator[str]:
    """Yield each change that would do, with its cost."""
    assert defence.weights is not None
    f = next((f for f in range(math.ceil(defence.f) - 1, 0, -1) if tolerated(replace(defence, f=float(f)))), None)
    if f is not None:
        yield f"f={f} (then any {f} may lie, and no more)"
    found, equal = largest_share(defence), replace(defence, weights=None)
    if found is not None and found[1].weights is not None:
        yield f"max_share={found[0]:g} ({_lowered(defence.weights, found[1].weights)})"
    if tolerated(equal):
        disguised = found is not None and found[1].weights is None
        same = f"; max_share={found[0]:g} is that in disguise" if found is not None and disguised else ""
        yield f"weights=None ({_levelled(defence.weights)}{same})"


def _lowered(before: Sequence[float], after: Sequence[float]) -> str:
    """Return what a cap costs."""
    lower = [worker for worker, (given, left) in enumerate(zip(before, after, strict=True)) if left < given]
    return f"workers {lower} then count {max(after):.4g}, not {', '.join(f'{before[worker]:.4g}' for worker in lower)}"


def _levelled(weights: Sequence[float]) -> str:
    """Return what equal weights cost."""
    least, most = (choose(range(len(weights)), key=weights.__getitem__) for choose in (min, max))
    times = f"{weights[most] / weights[least]:.3g} times as much" if weights[least] > 0 else "more"
    return f"worker {least} then counts as much as worker {most}, which weighs {times}"
