"""How far float32 ends from float64 under each schedule of Anytime, on least squares of 20 unknowns.

    python benchmarks/rounding.py
    python benchmarks/rounding.py --steps='[100]'

Full gradients of 200 rows, SGD; the learning rate is 0.25 / T under the theory's schedule and 0.05 under the others, as their sizes ask for. Printed
is the largest difference among the coordinates of the query point after T steps.
"""

import torch
from jsonargparse import auto_cli
from tables import console, table
from torch import Tensor, nn

from lightning_byz.optimizers import Anytime

SCHEDULES = {"theory": Anytime(), "gamma=0.1": Anytime(0.1), "released": Anytime("released")}


def ended(anytime: Anytime, steps: int, *, rate: float, dtype: torch.dtype) -> Tensor:
    """Return the query point after some steps."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 20, generator=draws, dtype=torch.float64)
    targets = rows @ torch.linspace(-1, 1, 20, dtype=torch.float64) + torch.randn(200, generator=draws).double()
    matrix, offset = (rows.T @ rows / 200).to(dtype), (rows.T @ targets / 200).to(dtype)
    weight = nn.Parameter(torch.zeros(20, dtype=dtype))
    optimizer = torch.optim.SGD([weight], lr=rate)
    anytime.attach(optimizer)
    for _ in range(steps):
        weight.grad = matrix @ weight.detach() - offset
        optimizer.step()
    return weight.detach().double()


def main(steps: tuple[int, ...] = (1_000, 10_000)) -> None:
    """Print the table.

    Args:
        steps: Numbers of steps, T.

    """
    torch.set_num_threads(1)
    result = table("Largest difference between float32 and float64", "steps", *SCHEDULES)
    for count in steps:
        cells = []
        for name, anytime in SCHEDULES.items():
            rate = 0.25 / count if name == "theory" else 0.05
            single, double = (ended(anytime, count, rate=rate, dtype=dtype) for dtype in (torch.float32, torch.float64))
            cells.append(f"{float((single - double).abs().max()):.1e}")
        result.add_row(f"{count:,}", *cells)
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
