"""Five sites of unequal size train one model on digits that stay where they are; one site lies, and any one may.

Run it, and then once more with the mean instead of a robust rule:

    python examples/sites.py
    python examples/sites.py --aggregator=Mean

Here the sites are five processes of one machine. On five machines, each runs the same file under torchrun with ``Trainer(num_nodes=5, devices=1)``.
"""

from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, Aggregator, GeometricMedian
from lightning_byz.attacks import ReverseGradient
from lightning_byz.callbacks import SiteTable
from lightning_byz.demos import DigitsClassifier, DigitsSites


def main(aggregator: Aggregator = CTMA(GeometricMedian()), *, liar: int = 0, epochs: int = 10) -> None:  # noqa: B008 - frozen
    """Train, and print each site's accuracy on digits of its own, the worst served first.

    Args:
        aggregator: The robust rule.
        liar: The site that sends its gradient times -10.
        epochs: Passes over as many digits as all sites have.
    """
    seed_everything(0)
    strategy = RobustStrategy(
        data="local",
        weights="samples",
        f=1,
        aggregator=aggregator,
        attackers=[liar],
        attack=ReverseGradient(factor=10),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=5,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        strategy=strategy,
        callbacks=[SiteTable("val_accuracy")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsClassifier(), datamodule=DigitsSites())


if __name__ == "__main__":
    auto_cli(main)
