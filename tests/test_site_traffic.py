"""What leaves a site: every collective of a fit at five sites is written down, and no sample, label or name is in it."""

import tempfile

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, GeometricMedian
from lightning_byz.attacks import ReverseGradient
from lightning_byz.callbacks import SiteTable, WorkerMonitor
from lightning_byz.demos import DigitsClassifier, DigitsSites
from tests.wiretap import wiretap

NAME = "st-elsewhere"


class Named(DigitsSites):
    """A site that has a name, in the attributes and the folders of its data."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.name = f"{NAME}-{self.trainer.global_rank}"
        self.train.name = self.name


class Leaks(DigitsClassifier):
    """Gathers its batches, labels or name."""

    what = "samples"

    def training_step(self, batch, batch_idx):
        name = torch.tensor(list(self.trainer.datamodule.name.encode()), dtype=torch.uint8)
        self.all_gather({"samples": batch[0], "labels": batch[1], "name": name}[self.what])
        return super().training_step(batch, batch_idx)


class LeaksLabels(Leaks):
    what = "labels"


class LeaksItsName(Leaks):
    what = "name"


def overheard(module: type[DigitsClassifier]) -> dict:
    """Fit on this rank's site, and return what was found in its traffic."""
    seed_everything(0, verbose=False)
    data, batches = Named(batch_size=16), []

    class Notes(module):
        def training_step(self, batch, batch_idx):
            batches.append((batch[0].clone(), batch[1].clone()))
            return super().training_step(batch, batch_idx)

    strategy = RobustStrategy(
        data="local", weights="samples", f=1, aggregator=CTMA(GeometricMedian()), attackers=[0],
        attack=ReverseGradient(factor=10),
    )  # fmt: skip
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder, wiretap() as heard:
        trainer = Trainer(
            accelerator="cpu", devices=5, max_epochs=1, strategy=strategy, default_root_dir=folder,
            callbacks=[SiteTable("val_accuracy"), WorkerMonitor()], enable_checkpointing=False, **quiet,
        )  # fmt: skip
        trainer.fit(Notes(), datamodule=data)
        trainer.save_checkpoint(f"{folder}/end.ckpt")
    integers = [tensor for tensor in heard.tensors if tensor.dtype == torch.int64]
    return {
        "calls": heard.calls,
        "objects": [type(one).__name__ for one in heard.objects],
        "steps": len(batches),
        "samples": sum(heard.contains(image) for images, _ in batches[:2] for image in images),
        "labels": sum(heard.contains(labels) for _, labels in batches),
        "name": NAME.encode() in heard.bytes,
        "size": len(data.train),
        "told": any(len(data.train) in tensor.flatten().tolist() for tensor in integers),
    }


@pytest.mark.filterwarnings("ignore")
def test_no_sample_label_or_name_travels(ranks):
    answers = ranks(5).run(overheard, DigitsClassifier)
    for answer in answers:
        assert answer["calls"] > 2 * answer["steps"], "something was heard"
        assert (answer["samples"], answer["labels"], answer["name"]) == (0, 0, False)
        assert answer["told"], "how much it has does travel, as a number"
    assert [answer["size"] for answer in answers] == [450, 360, 270, 180, 90]
    assert len({(answer["steps"], answer["calls"]) for answer in answers}) == 1, "as many at each site"
    assert set(answers[0]["objects"]) <= {"str", "bool", "NoneType"}, "Lightning tells the others rank 0's folder"
    assert not any(answer["objects"] for answer in answers[1:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("leak", [Leaks, LeaksLabels, LeaksItsName])
def test_what_would_travel_is_heard(ranks, leak):
    """The microphone works: a module that gathers its batches is caught."""
    for answer in ranks(5).run(overheard, leak):
        assert answer[leak.what]
