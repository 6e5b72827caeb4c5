"""pytorch-forecasting's Temporal Fusion Transformer, a LightningModule, forecasts waves; one of six workers sends its gradient times -10.

Run it, and then once more with the mean instead of a robust rule (``pip install 'lightning-byz[modules]'`` first):

    python examples/forecasting.py
    python examples/forecasting.py --aggregator=Mean
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from torch.utils.data import DataLoader

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.attacks import ReverseGradient

QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


def waves(count: int = 16, length: int = 60) -> TimeSeriesDataSet:
    """Return ``count`` noisy waves, cut into windows of 12 past values and 4 to forecast."""
    draws, times = np.random.default_rng(0), np.arange(length)
    values = [np.sin(times / 3 + wave) + 0.05 * draws.standard_normal(length) for wave in range(count)]
    frames = [pd.DataFrame({"wave": str(wave), "time": times, "value": own}) for wave, own in enumerate(values)]
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True),
        time_idx="time",
        target="value",
        group_ids=["wave"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
    )


def error(module: Any, loader: DataLoader) -> float:
    """Return the mean absolute error of the median forecast; the waves have an amplitude of 1."""
    errors = []
    with torch.no_grad():
        for inputs, (values, _) in loader:
            forecast = module.eval().to_prediction(module(inputs))
            errors.append((forecast - values).abs().mean())
    return float(torch.stack(errors).mean())


def main(aggregator: Aggregator = CTMA(CoordinateMedian()), *, epochs: int = 2) -> None:  # noqa: B008 - frozen
    """Train for a while, and print the error before and after.

    Args:
        aggregator: The robust rule.
        epochs: Passes over the data.
    """
    seed_everything(0)
    data = waves()
    module = TemporalFusionTransformer.from_dataset(data, hidden_size=8, hidden_continuous_size=4, learning_rate=0.02)
    strategy = RobustStrategy(workers=6, f=1, aggregator=aggregator, attackers=[5], attack=ReverseGradient(factor=10))
    quiet: Any = dict.fromkeys(QUIET, False)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, gradient_clip_val=0.5, strategy=strategy, **quiet
    )
    whole = data.to_dataloader(train=False, batch_size=720)
    before = error(module, whole)
    trainer.fit(module.train(), data.to_dataloader(train=True, batch_size=8))
    print(f"error before {before:.3f}, after {error(module, whole):.3f}")


if __name__ == "__main__":
    auto_cli(main)
