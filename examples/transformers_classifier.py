"""A model of the transformers library, built from its config, learns to tell sentences apart; one of six workers sends its gradient times -10.

Run it, and then once more with the mean instead of a robust rule (``pip install 'lightning-byz[modules]'`` first; nothing is downloaded):

    python examples/transformers_classifier.py
    python examples/transformers_classifier.py --aggregator=Mean
"""

from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from transformers import BertConfig, BertForSequenceClassification

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.attacks import ReverseGradient

SIZES: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 4}
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class Classifier(LightningModule):
    """What users of transformers write: the model returns the loss where the batch has labels."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(vocab_size=40, max_position_embeddings=12, intermediate_size=64, **SIZES)
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        output = self.model(**batch)
        self.log("train_loss", output.loss)
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def sentences(count: int) -> Any:
    """Return sentences of 12 random tokens; those of a topic come from 16 of the 40, of which topics share some."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=draws)
    tokens = torch.randint(16, (count, 12), generator=draws) + 8 * labels[:, None]
    return [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, labels, strict=True)]


def accuracy(module: Classifier, samples: Any) -> float:
    """Return the part of ``samples`` that the module classifies right."""
    batch = default_collate(samples)
    with torch.no_grad():
        guesses = module.eval().model(input_ids=batch["input_ids"]).logits.argmax(1)
    return float((guesses == batch["labels"]).float().mean())


def main(aggregator: Aggregator = CTMA(CoordinateMedian()), *, epochs: int = 2) -> None:  # noqa: B008 - frozen
    """Train for a while, and print the accuracy on sentences that were not trained on.

    Args:
        aggregator: The robust rule.
        epochs: Passes over the data.
    """
    seed_everything(0)
    samples, module = sentences(1000), Classifier()
    strategy = RobustStrategy(workers=6, f=1, aggregator=aggregator, attackers=[5], attack=ReverseGradient(factor=10))
    quiet: Any = dict.fromkeys(QUIET, False)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, gradient_clip_val=1.0, strategy=strategy, **quiet
    )
    before = accuracy(module, samples[720:])
    trainer.fit(module.train(), DataLoader(samples[:720], batch_size=8, shuffle=True))
    print(f"accuracy before {before:.3f}, after {accuracy(module, samples[720:]):.3f}")


if __name__ == "__main__":
    auto_cli(main)
