"""This strategy gives no warning that DDP does not give."""

import tempfile
import warnings

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import SignFlip
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import pairwise
from lightning_byz.preaggregators import NNM
from lightning_byz.strategies import RobustStrategy

CHAIN = {"aggregator": CTMA(CoordinateMedian()), "preaggregators": [NNM()], "estimator": WorkerMomentum()}
STRATEGIES = {
    "one worker per rank": {"f": 0, "aggregator": CoordinateMedian()},
    "several": {"workers": 4, "f": 1, "attackers": [3], "attack": SignFlip(), **CHAIN},
}


def warned(arguments: dict | None) -> set[str]:
    """Return the warnings of a fit, a validation, a test and a prediction on this rank."""
    strategy = DDPStrategy() if arguments is None else RobustStrategy(**arguments)
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy=strategy, max_steps=2, default_root_dir=folder, **quiet
        )
        module, data = DigitsClassifier(), DigitsData()
        for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
            run(module, data)
    return {f"{warning.category.__name__}: {str(warning.message).replace(folder, '')}" for warning in caught}


def test_no_warning_that_ddp_does_not_give(ranks):
    plain = ranks(2).run(warned, None)
    for name, arguments in STRATEGIES.items():
        for given, as_ddp in zip(ranks(2).run(warned, arguments), plain, strict=True):
            assert not given - as_ddp, name


def test_the_gathering_that_torch_names():
    """``all_gather_single`` where there is one: the older name is deprecated there."""
    assert pairwise._gather is getattr(dist, "all_gather_single", None) or not hasattr(dist, "all_gather_single")
