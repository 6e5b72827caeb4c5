"""Tables of the asynchronous studies, of what ``lightning-byz compare`` has left; docs/studies/async.md.

    lightning-byz compare --config configs/studies/async_weights.yaml --set data.folder=folder/with/mnist
    python benchmarks/paired.py runs/compare/async_weights/results.csv

One axis is laid across, and each of its variants is compared with the first, seed by seed: accuracies in percent after the last step, mean and
standard error over seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli
from kept_runs import paired, read_scores
from tables import markdown, shown


def main(results: Path, *, axes: Sequence[str] = ("rule", "attack"), across: str = "weights") -> None:
    """Print a table in Markdown.

    Args:
        results: The file of all evaluations.
        axes: Of the grid, that make a line each.
        across: The axis whose variants are compared.
    """
    scores = read_scores(results, [*axes, across])
    lines = list(dict.fromkeys(names[:-1] for names in scores))
    variants = list(dict.fromkeys(names[-1] for names in scores))
    first, *others = variants
    header = [", ".join(axes), *variants, *(f"{other} - {first}" for other in others), "pairs"]
    table = []
    for line in lines:
        runs = {variant: scores.get((*line, variant), {}) for variant in variants}
        pairs = [paired(runs[other], runs[first]) for other in others]
        cells = [shown(list(found.values())) if found else "-" for found in runs.values()]
        differences = [shown(found, sign="+") if found else "-" for found in pairs]
        table.append(
            [", ".join(line), *cells, *differences, ", ".join(dict.fromkeys(str(len(found)) for found in pairs))]
        )
    print(markdown(header, table), end="")


if __name__ == "__main__":
    auto_cli(main)
