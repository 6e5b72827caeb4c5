"""Law 9: what cannot be right is refused before the first step, on every rank, with the value given and the range allowed."""

import os
import re
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, WeightedRandomSampler

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian, Krum, TrimmedMean
from lightning_byz.attacks import SignFlip
from lightning_byz.errors import ToleranceError
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllToAll, Local, Placement
from lightning_byz.preaggregators import NNM
from lightning_byz.rounds import Attackers, Defence
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.start_up import fitting_defence, start_up_line, warn_of_many, warn_of_none
from lightning_byz.strategies import RobustStrategy
from tests.ranks import RankFailure
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit

MEDIAN = {"f": 0, "aggregator": CoordinateMedian()}


ARGUMENTS = [
    ({"f": -1}, r"f=-1.*0 or more"),
    ({"f": float("nan")}, r"f=nan.*0 or more"),
    ({"f": "most"}, r"f='most'.*'max'"),
    ({"f": None}, r"f=None"),
    ({"workers": 0}, r"workers=0.*1 or more"),
    ({"workers": "4"}, r"workers='4'"),
    ({"seed": 1.5}, r"seed=1.5.*whole number"),
    ({"attackers": [1, 1], "attack": SignFlip()}, r"attackers=\[1, 1\] names a worker twice"),
    ({"attackers": 3}, r"attackers=3.*list of worker ids"),
    ({"attackers": ["3"]}, r"attackers=\['3'\].*whole numbers"),
    ({"aggregator": CoordinateMedian}, r"aggregator=the class CoordinateMedian.*an instance"),
    ({"preaggregators": [CoordinateMedian()]}, r"preaggregators=CoordinateMedian\(\).*PreAggregator"),
    ({"preaggregators": NNM()}, r"preaggregators=NNM\(\).*give a list"),
    ({"attack": "SignFlip"}, r"attack='SignFlip'.*SignFlip\(\)"),
    ({"buffers": "rank0"}, r"buffers='rank0'"),
    ({"buffers": "medan"}, r"buffers='medan': give one of \['mean', 'median'\]"),
    ({"f": "two"}, r"f='two'.*0 or more, or 'max'"),
    ({"workers": "eight"}, r"workers='eight': give 1 or more logical workers"),
    ({"attackers": "six"}, r"attackers='six': give a list of worker ids.*such as \[6, 7\]"),
    ({"attackers": 6}, r"attackers=6: give a list of worker ids"),
    ({"attackers": [1]}, r"attackers=\[1\] without an attack would behave honestly: give attack="),
    ({"preaggregators": "NNM"}, r"preaggregators='NNM': give a list, e\.g\. \[NNM\(\)\]"),
    ({"preaggregators": NNM}, r"preaggregators=.*NNM.*: give a list"),
    ({"weights": "sample"}, r"weights='sample': give one finite number.*or 'samples'"),
    ({"aggregator": None}, r"aggregator=None: give a robust rule, .* or a code"),
]


def construct(all_arguments: list[dict]) -> list[str]:
    """Construct strategies in a process of its own, where no shape checker speaks before the library does."""
    answers = []
    for arguments in all_arguments:
        try:
            RobustStrategy(**{**MEDIAN, **arguments})
        except (ValueError, TypeError) as error:
            answers.append(str(error))
        else:
            answers.append("accepted")
    return answers


def test_arguments_are_refused_at_construction(ranks):
    (answers,) = ranks(1).run(construct, [arguments for arguments, _ in ARGUMENTS])
    for answer, (arguments, sentence) in zip(answers, ARGUMENTS, strict=True):
        assert re.search(sentence, answer), (arguments, answer)


def misspelt_neighbors() -> str:
    try:
        Krum(neighbors="papr")
    except ValueError as error:
        return str(error)
    return "accepted"


def test_a_misspelt_word_of_a_rule_is_refused(ranks):
    assert ranks(1).run(misspelt_neighbors) == ['neighbors must be "weight" or "paper", not \'papr\'']


def test_an_attack_without_attackers_is_pointed_out():
    with pytest.warns(UserWarning, match=r"attack=SignFlip\(\) is never used, as nobody attacks: give attackers="):
        RobustStrategy(**MEDIAN, attack=SignFlip())


class Manual(Classifier):
    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False


class Synchronized(Classifier):
    def __init__(self, options):
        super().__init__(options)
        self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)


class Frozen(Classifier):
    def __init__(self, options):
        super().__init__(options)
        self.requires_grad_(False)


class Streaming(IterableDataset):
    def __iter__(self):
        return iter(Points(8))


class OverStream(Classifier):
    def train_dataloader(self):
        return DataLoader(Streaming(), batch_size=4)


class OwnSampler(Classifier):
    def train_dataloader(self):
        return DataLoader(Points(), batch_size=4, sampler=WeightedRandomSampler(torch.ones(96), 96))


class OwnBatches(BatchSampler):
    pass


class OwnBatchSampler(Classifier):
    def train_dataloader(self):
        return DataLoader(Points(), batch_sampler=OwnBatches(SequentialSampler(Points()), 4, False))


class OwnDistributedSampler(Classifier):
    def train_dataloader(self):
        sampler = torch.utils.data.DistributedSampler(Points(), num_replicas=1, rank=0)
        return DataLoader(Points(), batch_size=4, sampler=sampler)


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class AcrossCoordinates(Aggregator):
    """A rule that mixes coordinates past the Stack: its slices would disagree."""

    def __call__(self, stack, *, generator=None):
        return stack.vectors[stack.vectors.norm(dim=1).argmin()]


@dataclass(frozen=True)
class Returns(Aggregator):
    """A rule that returns what no rule may."""

    what: str | None

    def __call__(self, stack, *, generator=None):
        if self.what == "written":
            return stack.vectors.mul_(2).mean(0)
        mean = stack.vectors.mean(0)
        return {"short": mean[None], "nan": mean * float("nan")}.get(self.what)


FOUR = {**MEDIAN, "workers": 4}
REFUSED = {
    "f of the median": (
        Fit(strategy={**FOUR, "f": 2}),
        "ToleranceError",
        r"CoordinateMedian cannot tolerate f = 2 of the total weight W = 4",
    ),
    "f of the trimmed mean": (
        Fit(strategy={**FOUR, "f": 2, "aggregator": TrimmedMean()}),
        "ToleranceError",
        "TrimmedMean cannot tolerate f = 2",
    ),
    "f of the base": (
        Fit(strategy={**FOUR, "f": 2, "aggregator": CTMA(CoordinateMedian())}),
        "ToleranceError",
        "f = 2",
    ),
    "f of krum": (Fit(strategy={**FOUR, "f": 2, "aggregator": Krum()}), "ToleranceError", "Krum cannot tolerate f = 2"),
    "attackers out of range": (
        Fit(strategy={**FOUR, "attackers": [4], "attack": SignFlip()}),
        "ValueError",
        r"\[4\] are no worker ids.*0 to 3",
    ),
    "manual optimization": (
        Fit(strategy=FOUR, module=Manual),
        "ValueError",
        "Manual uses manual optimization.*4 logical workers",
    ),
    "SyncBatchNorm": (
        Fit(Options(batch_norm=True), FOUR, module=Synchronized),
        "ValueError",
        "SyncBatchNorm waits for all ranks",
    ),
    "no trainable parameter": (Fit(strategy=FOUR, module=Frozen), "ValueError", "Frozen has no trainable parameter"),
    "iterable data": (Fit(strategy=FOUR, module=OverStream), "ValueError", "iterable data has none"),
    "a user's sampler": (
        Fit(strategy=FOUR, module=OwnSampler),
        "ValueError",
        "own sampler WeightedRandomSampler would be lost",
    ),
    "a user's distributed sampler": (
        Fit(strategy=FOUR, module=OwnDistributedSampler),
        "ValueError",
        "own sampler DistributedSampler would be lost",
    ),
    "a user's batch sampler": (
        Fit(strategy=FOUR, module=OwnBatchSampler),
        "ValueError",
        "batch sampler OwnBatches would be lost",
    ),
    "no distributed sampler": (
        Fit(strategy=FOUR, trainer={"use_distributed_sampler": False}),
        "ValueError",
        "use_distributed_sampler=True",
    ),
    "an empty shard": (
        Fit(Options(samples=3), FOUR),
        "ValueError",
        r"3 training samples for 4 workers leave workers \[3\] with an empty shard",
    ),
    "LBFGS with a memory": (
        Fit(strategy={**FOUR, "estimator": WorkerMomentum()}, module=Lbfgs),
        "ValueError",
        "LBFGS evaluates",
    ),
    "workers across ranks": (
        Fit(strategy={**MEDIAN, "workers": 1}),
        "ValueError",
        "workers=1 on 2 ranks leaves a rank without a worker",
    ),
    "local on two ranks": (
        Fit(strategy={**FOUR, "exchange": Local()}),
        "ValueError",
        r"Local\(\) serves one process.*2 ranks",
    ),
    "an aggregator that returns nothing": (
        Fit(strategy={**FOUR, "aggregator": Returns(None)}),
        "ValueError",
        r"Returns must return .*not None",
    ),
    "an aggregator of a wrong shape": (
        Fit(strategy={**FOUR, "aggregator": Returns("short")}),
        "ValueError",
        r"Returns must return a floating",
    ),
    "an aggregator that is not finite": (
        Fit(strategy={**FOUR, "aggregator": Returns("nan")}),
        "ValueError",
        "Returns returned values that are not",
    ),
    "an aggregator that writes": (
        Fit(strategy={**FOUR, "aggregator": Returns("written")}),
        "ValueError",
        r"Returns wrote to stack\.vectors",
    ),
    "across coordinates": (
        Fit(strategy={**FOUR, "aggregator": AcrossCoordinates()}),
        "ValueError",
        "AcrossCoordinates gives other values",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_refused_on_every_rank(ranks, name):
    job, kind, sentence = REFUSED[name]
    for answer in ranks(2).run(attempt, job, 2):
        assert answer[0] == kind, answer
        assert re.search(sentence, answer[1]), answer


def test_an_accepted_run_is_not_refused(ranks):
    assert ranks(2).run(attempt, Fit(strategy=FOUR), 2) == [("nothing", "was refused")] * 2


def test_one_worker_per_rank_keeps_the_users_loader(ranks):
    """Samplers, iterable data and manual optimization are Lightning's own there."""
    for module in (OwnSampler, OverStream, OwnBatchSampler):
        for result in ranks(2).run(fit, Fit(strategy=MEDIAN, module=module), 2):
            assert result["global_step"] > 0


def test_an_error_on_one_rank_ends_both(ranks):
    with pytest.raises(RankFailure, match="only rank 1 fails"):
        ranks(2).run(fit_failing_on_rank_one, Fit(strategy=FOUR), 2, timeout=60)


def test_different_modules_on_the_ranks_are_refused(ranks):
    for answer in ranks(2).run(attempt_with_another_module_on_rank_one, Fit(strategy=FOUR), 2):
        assert answer[0] == "ValueError"
        assert "1 ranks built a" in answer[1]


def attempt_with_another_module_on_rank_one(job: Fit, devices: int):
    job.options.batch_norm = os.environ["LOCAL_RANK"] == "1"
    return attempt(job, devices)


def fit_failing_on_rank_one(job: Fit, devices: int):
    job.module = FailsOnRankOne if os.environ["LOCAL_RANK"] == "1" else Classifier
    return fit(job, devices)


class FailsOnRankOne(Classifier):
    def training_step(self, batch, batch_idx):
        if self.calls > 4:
            raise RuntimeError("only rank 1 fails")
        return super().training_step(batch, batch_idx)


def test_max_is_the_largest_number_the_rules_tolerate():
    found = {
        n: fitting_defence("max", lambda f, n=n: Defence(n, f, CoordinateMedian()), workers=n, sliced=False).f
        for n in (1, 2, 3, 4, 7, 8)
    }
    assert found == {1: 0, 2: 0, 3: 1, 4: 1, 7: 3, 8: 3}
    paper = Krum(neighbors="paper")
    assert fitting_defence("max", lambda f: Defence(8, f, paper), workers=8, sliced=False).f == 2
    with pytest.raises(ToleranceError):
        Defence(8, 4, CoordinateMedian()).check()


def test_a_maximum_of_none_is_a_warning():
    paper = Defence(8, 0, CTMA(CoordinateMedian()), [NNM()])
    sentence = (
        r"f='max' is 0: NNM\(\) -> CTMA\(base=CoordinateMedian\(\)\) tolerates no Byzantine worker among 8 workers"
    )
    with pytest.warns(UserWarning, match=sentence):
        warn_of_none("max", paper)
    warn_of_none(0, paper)
    warn_of_none("max", Defence(8, 1, CoordinateMedian()))


def test_the_start_up_line_names_rules_f_attackers_and_attack():
    placement, defence = Placement(4, 2, 0), Defence(4, 1, CTMA(CoordinateMedian()), [NNM()])
    line = start_up_line(defence, AllToAll(), placement, Plan(WorkerMomentum(), Attackers([3], SignFlip())))
    assert line.startswith("lightning_byz: 4 workers on 2 ranks, f = 1; ")
    assert "; WorkerMomentum(beta=0.9) -> NNM() -> CTMA(base=CoordinateMedian()); " in line
    assert "; worker 3 attacks with SignFlip(); exchange AllToAll trusts" in line
    assert "one broken machine exceeds f: workers [0, 1], [2, 3] share a rank" in line
    two = start_up_line(defence, AllToAll(), placement, Plan(WorkerMomentum(), Attackers([2, 3], SignFlip())))
    assert "; workers 2, 3 attack with SignFlip(); " in two


def test_a_single_worker_shares_nothing():
    for workers, f in ((2, 0), (2, 1)):
        line = start_up_line(Defence(workers, f, CoordinateMedian()), AllToAll(), Placement(workers, workers, 0))
        assert "share a rank" not in line
        assert "; Gradient() -> CoordinateMedian(); no attack; " in line
    assert "1 worker on 1 rank, f = 0;" in start_up_line(Defence(1, 0, CoordinateMedian()), Local(), Placement(1, 1, 0))


def test_more_attackers_than_f_is_a_warning():
    with pytest.warns(UserWarning, match="2 workers attack in this experiment and f = 1"):
        warn_of_many(Defence(8, 1, CoordinateMedian()), Attackers([1, 2], SignFlip()))


def test_the_name_robust_is_registered():
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy="robust", max_steps=2, **quiet)
    assert isinstance(trainer.strategy, RobustStrategy)
    assert trainer.strategy.aggregator == GeometricMedian()
    assert trainer.strategy.preaggregators == ()
    assert trainer.strategy.f == "max"
