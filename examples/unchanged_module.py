"""A module that was not written for this package: Lightning's own demo transformer, trained by six workers of which one attacks.

Run it, and then once more with the mean instead of a robust rule:

    python examples/unchanged_module.py
    python examples/unchanged_module.py --aggregator=Mean
"""

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.demos import LightningTransformer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy, WorkerMonitor
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.attacks import ReverseGradient

TOKENS, LENGTH = 16, 8


def sequences(count: int) -> TensorDataset:
    """Return ``count`` sequences that count upwards from a random token, each with the sequence one token later."""
    start = torch.randint(TOKENS, (count, 1), generator=torch.Generator().manual_seed(0))
    tokens = (start + torch.arange(LENGTH + 1)) % TOKENS
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])


def loss_of(module: LightningTransformer, data: TensorDataset) -> Tensor:
    """Return the module's loss over all of ``data``."""
    inputs, targets = data.tensors
    with torch.no_grad():
        return torch.nn.functional.nll_loss(module.eval()(inputs, targets), targets.flatten())


def main(aggregator: Aggregator = CTMA(CoordinateMedian()), *, epochs: int = 2) -> None:  # noqa: B008 - frozen
    """Train for a while, and print the loss before and after.

    Args:
        aggregator: The robust rule.
        epochs: Passes over the data.
    """
    seed_everything(0)
    data, module = sequences(240), LightningTransformer(vocab_size=TOKENS)
    module.prepare_data = lambda: None  # the module's own data, a text from the web, is not needed
    before = loss_of(module, data)
    strategy = RobustStrategy(workers=6, f=1, aggregator=aggregator, attackers=[5], attack=ReverseGradient(factor=10))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        strategy=strategy,
        callbacks=[WorkerMonitor()],
        enable_checkpointing=False,
    )
    trainer.fit(module.train(), DataLoader(data, batch_size=8, shuffle=True))
    print(f"loss before {before:.3f}, after {loss_of(module, data):.3f}")


if __name__ == "__main__":
    auto_cli(main)
