"""How long a step takes under codes and under the rules of their papers, on links of several speeds: measured parts, added up by a stated model.

    python benchmarks/coded_time.py
    python benchmarks/coded_time.py --results=runs/compare/codes/results.csv

20 workers of which 4 lie, 320 samples a step, and a perceptron of about as many parameters as --coordinates. Measured, on one thread: the gradient of
one worker's samples, encoding, and all that the server does with the rows (location and decoding, or the rule). The model of a step is

    gradient + encoding + 20 rows through the server's one link + server + one gradient's length through it, broadcast as a pipeline

where a link in memory takes the time of a copy. "all to all" is the layout of the library instead: each worker's link carries its row and the mean
once, and the server's work is shared by all. Bulyan as written measures all distances anew for each vector that it chooses, as its peers' code does;
SignMajority sends and gets bits.

With --results, of a comparison with configs/studies/codes.yaml, a method's steps to the accuracy of --target make a time of each step: the first
evaluation at which the mean over seeds reaches it, under the attack of --attack on the data of --data.
"""

from collections.abc import Callable
from statistics import median

import torch
from compressors import seconds
from jsonargparse import auto_cli
from tables import console, table
from torch import Tensor, nn

from lightning_byz.aggregators import Bulyan, SignMajority
from lightning_byz.codes import Code, Cyclic, Solon
from lightning_byz.stack import Stack

WORKERS, LIARS, SAMPLES = 20, 4, 320
CODES: dict[str, Code] = {
    "Solon(4, 2)": Solon(LIARS, 2),
    "Solon(4, 12)": Solon(LIARS, 12),
    "Cyclic(4) (Draco)": Cyclic(LIARS),
}
WRITTEN = "Bulyan, as written"
LINKS = {"memory": None, "1 Gbit/s": 1.25e8, "100 Mbit/s": 1.25e7}


def bulyan_as_written(rows: Tensor, f: int) -> Tensor:
    """Return Bulyan over Krum as the papers' code runs it: all distances anew for each vector that is chosen.

    Example:
        >>> bulyan_as_written(torch.tensor([[0.0], [1.0], [1.0], [1.0], [1.0], [2.0], [9.0]]), 1)
        tensor([1.])

    """
    left, chosen = list(rows), []
    for _ in range(len(rows) - 2 * f):
        scores = []
        for place, one in enumerate(left):
            others = [other for at, other in enumerate(left) if at != place]
            distances = sorted(float((one - other).square().sum()) for other in others)
            scores.append(sum(distances[: max(len(left) - f - 2, 1)]))
        chosen.append(left.pop(scores.index(min(scores))))
    table = torch.stack(chosen)
    centre = table.median(0).values
    nearest = (table - centre).abs().argsort(0)[: len(chosen) - 2 * f]
    return table.gather(0, nearest).mean(0)


class Method:
    """What a method's step is made of, in seconds and bytes.

    Args:
        samples: That a worker computes on.
        encode: Makes a worker's message of its gradient; nothing for the gradient itself.
        server: What the server does with all rows.
        sent: Bytes of a message.
        back: Bytes of what comes back.

    """

    def __init__(
        self, samples: int, encode: Callable[[], object], server: Callable[[], object], sent: float, back: float
    ) -> None:
        self.samples, self.encode, self.server, self.sent, self.back = samples, encode, server, sent, back


def network(coordinates: int) -> nn.Module:
    """Return a perceptron of one hidden layer, of about so many parameters."""
    hidden = max(coordinates // (784 + 10), 1)
    return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def methods(coordinates: int) -> dict[str, Method]:
    """Return all that are compared."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(WORKERS, coordinates, generator=draws)
    rows[-LIARS:] *= -100
    stack, whole = lambda: Stack(rows, f=LIARS), 4.0 * coordinates
    result = {name: _coded(code, coordinates) for name, code in CODES.items()}
    own = SAMPLES // WORKERS
    bits = rows[0] > 0
    result[WRITTEN] = Method(own, _nothing, lambda: bulyan_as_written(rows, LIARS), whole, whole)
    result["Bulyan"] = Method(own, _nothing, lambda: Bulyan()(stack()), whole, whole)
    result["SignMajority"] = Method(
        own, lambda: torch.gt(rows[0], 0, out=bits), lambda: SignMajority()(stack()), whole / 32, whole / 32
    )
    return result


def _coded(code: Code, coordinates: int) -> Method:
    where, parts = code.coordinates(coordinates), code.parts(WORKERS)
    gradients = [*torch.randn(1 + max(map(max, parts)), coordinates, generator=torch.Generator().manual_seed(1))]
    rows = torch.stack(
        [
            code.encode(worker, [gradients[part] for part in held], where, workers=WORKERS)
            for worker, held in enumerate(parts)
        ]
    )
    rows[-LIARS:] *= -100
    own, out, draws = (
        [gradients[part] for part in parts[0]],
        torch.zeros_like(rows[0]),
        torch.Generator().manual_seed(2),
    )
    samples = SAMPLES * len(parts[0]) // len(gradients)

    def server() -> Tensor:
        liars = code.locate(code.project(rows, where, generator=draws))
        assert liars == list(range(WORKERS - LIARS, WORKERS))
        return code.decode(rows, liars, where)

    encode = lambda: code.encode(0, own, where, workers=WORKERS, out=out)  # noqa: E731
    return Method(samples, encode, server, 4.0 * where.coded, 4.0 * coordinates)


def _nothing() -> None:
    return None


def gradient_of(module: nn.Module, samples: int) -> Callable[[], object]:
    """Return what computes a gradient of so many samples."""
    images, labels = torch.randn(samples, 784), torch.zeros(samples, dtype=torch.long)

    def compute() -> None:
        module.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()

    return compute


def measured(subject: Callable[[], object], rounds: int) -> float:
    """Return the median of the seconds, after a call that is not counted."""
    subject()
    return median(seconds(subject) for _ in range(rounds))


def steps_to(results: str, attack: str, data: str, target: float) -> dict[str, float]:
    """Return each method's step at which the mean accuracy over seeds first reaches the target; infinite for never."""
    import pandas

    lines = pandas.read_csv(results)
    lines = lines[(lines.attack == attack) & (lines.data == data) & lines.val_accuracy.notna()]
    found = {}
    for method, own in lines.groupby("method"):
        means = own.groupby("step").val_accuracy.mean()
        reached = means.index[means >= target]
        found[str(method)] = float(reached[0]) if len(reached) else float("inf")
    return {**found, WRITTEN: found.get("Bulyan", float("nan"))}


def main(
    coordinates: list[int] = [1_000_000],  # noqa: B006
    *,
    rounds: int = 5,
    results: str | None = None,
    attack: str = "none",
    data: str = "alike",
    target: float = 0.95,
) -> None:
    """Measure and print a table per length.

    Args:
        coordinates: Lengths of gradients, about.
        rounds: How often each part is timed.
        results: Of a comparison of the same methods, by name.
        attack: Of it, under which steps are counted.
        data: Of it, likewise.
        target: Accuracy to which they are.
    """
    torch.set_num_threads(1)
    needed = {} if results is None else steps_to(results, attack, data, target)
    for count in coordinates:
        module = network(count)
        total = sum(one.numel() for one in module.parameters())
        copied = torch.zeros(total)
        rate = 4.0 * total / measured(lambda: copied.copy_(torch.ones(1).expand(total)), rounds)  # noqa: B023
        result = table(
            f"{total:,} parameters, {WORKERS} workers, {LIARS} liars: seconds of a step by link",
            *(
                "method",
                "gradient ms",
                "encode ms",
                "server ms",
                "bytes per number",
                *(f"step, {link}" for link in LINKS),
            ),
            *("all to all, 100 Mbit/s", *(["steps", "all, memory", "all, 100 Mbit/s"] if needed else [])),
        )
        for name, method in methods(total).items():
            computed, encoded, served = (
                measured(one, rounds) for one in (gradient_of(module, method.samples), method.encode, method.server)
            )
            own = computed + encoded
            steps = [own + served + (WORKERS * method.sent + method.back) / (speed or rate) for speed in LINKS.values()]
            everyone = own + served / WORKERS + (method.sent + method.back) / LINKS["100 Mbit/s"]  # type: ignore[operator]
            count_of = needed.get(name, float("nan"))
            told = [f"{count_of:.0f}", f"{count_of * steps[0]:.1f}", f"{count_of * steps[-1]:.0f}"] if needed else []
            result.add_row(
                name,
                *(f"{1e3 * one:.1f}" for one in (computed, encoded, served)),
                f"{method.sent / total:.3f}",
                *(f"{one:.3f}" for one in (*steps, everyone)),
                *told,
            )
        console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
