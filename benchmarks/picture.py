"""The README's picture: accuracy while two of eight workers attack, behind robust rules and behind the mean.

    pip install -e '.[plots]'
    python benchmarks/picture.py

The fits are those of ``configs/quickstart.yaml``: with its rules, with ``Mean`` in their place, and with ``Mean`` and no attackers.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, Mean
from lightning_byz.attacks import ReverseGradient
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.preaggregators import NNM, PreAggregator

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "quickstart.yaml"
ROBUST, ATTACKED, HONEST = "#0a7d5a", "#c0392b", "#6b7280"
INK, GRID = "#1f2933", "#d9dee3"


class Accuracies(Callback):
    """Keeps the validation accuracy of each epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch's."""
        if not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics["val_accuracy"]))


def fitted(
    aggregator: Aggregator, before: Sequence[PreAggregator], attackers: Sequence[int], *, epochs: int
) -> list[float]:
    """Return the validation accuracy after each epoch of the quickstart with other rules and attackers."""
    seed_everything(1, verbose=False)
    kept = Accuracies()
    strategy = RobustStrategy(
        workers=8,
        f=2 if before else 0,
        estimator=WorkerMomentum(beta=0.9),
        preaggregators=before,
        aggregator=aggregator,
        attackers=attackers,
        attack=ReverseGradient(factor=10) if attackers else None,
    )
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, gradient_clip_val=1.0, strategy=strategy, callbacks=[kept],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(DigitsClassifier(hidden=128, learning_rate=0.5), datamodule=DigitsData(batch_size=16))
    return kept.values


def draw(robust: Sequence[float], attacked: Sequence[float], honest: Sequence[float], output: Path) -> None:
    """Draw the three curves on a light ground, which a dark page shows as it is."""
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    mpl.rcParams.update({"svg.hashsalt": "lightning_byz", "font.size": 11, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = plt.subplots(figsize=(7.2, 3.4), facecolor="white")
    epochs = range(1, len(robust) + 1)
    axes.plot(epochs, honest, color=HONEST, linestyle=(0, (4, 2)), linewidth=1.6)
    axes.plot(epochs, attacked, color=ATTACKED, linewidth=2.2)
    axes.plot(epochs, robust, color=ROBUST, linewidth=2.2)
    middle = len(epochs) * 0.42
    axes.text(middle, 0.995, "mean, nobody attacks", color=HONEST, va="bottom")
    axes.text(middle, 0.875, "robust rules, two of eight workers attack", color=ROBUST, va="top", weight="bold")
    axes.text(
        middle,
        max(attacked[int(middle) :]) + 0.04,
        "mean, two of eight workers attack",
        color=ATTACKED,
        va="bottom",
        weight="bold",
    )
    axes.set(xlim=(1, len(epochs)), ylim=(0, 1.08), xlabel="epoch", ylabel="validation accuracy")
    axes.set_xticks([1, *range(5, len(epochs) + 1, 5)])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    figure.tight_layout()
    metadata = {"Date": None} if output.suffix == ".svg" else None
    figure.savefig(output, metadata=metadata, dpi=160)


def main(*, epochs: int | None = None, output: Path = ROOT / "docs" / "accuracy.svg") -> None:
    """Fit three times, print the last accuracies, and draw.

    Args:
        epochs: Passes over the data; without it, as many as the config says.
        output: The picture, by its ending .svg or .png.
    """
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    passes: int = epochs or yaml.safe_load(CONFIG.read_text())["trainer"]["max_epochs"]
    robust = fitted(CTMA(CoordinateMedian()), [NNM()], [6, 7], epochs=passes)
    attacked = fitted(Mean(), [], [6, 7], epochs=passes)
    honest = fitted(Mean(), [], [], epochs=passes)
    print(
        f"robust rules, attacked: {robust[-1]:.4f}; mean, attacked: {attacked[-1]:.4f}; mean, honest: {honest[-1]:.4f}"
    )
    draw(robust, attacked, honest, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
