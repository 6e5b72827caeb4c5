"""What cannot be right under a code is refused in one sentence, before the first step where it can be known then, on every rank."""

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.arrivals import FixedDelays
from lightning_byz.attacks import Replay, ReverseGradient
from lightning_byz.codes import Cyclic, Repetition, Solon
from lightning_byz.compressors import Cast, TopK
from lightning_byz.estimators import DM21, Gradient, Storm, WorkerMomentum
from lightning_byz.links import EF21
from lightning_byz.preaggregators import NNM
from lightning_byz.strategies import RobustStrategy
from tests.coded import train
from tests.contracts.wrong_estimators import TwoAverages
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit

SOLON: dict[str, Any] = {"workers": 4, "code": Solon(1, 2)}


@dataclass(frozen=True)
class Neighbours(Gradient):
    """Mixes coordinates, and does not say so."""

    def update(self, memory, gradients, *, count):
        return gradients[0] + gradients[0].roll(1), memory


@dataclass(frozen=True)
class Uneven(Repetition):
    """Has the last worker of all compute two parts."""

    def parts(self, workers):
        return [*super().parts(workers)[:-1], (0, 1)]


ARGUMENTS = [
    ({"code": None}, r"^f=None: say how many workers may be Byzantine, e\.g\. f=2 or f='max', or give a code, such as"),
    ({"code": None, "f": 1}, r"^aggregator=None: give a robust rule, e\.g\. CTMA\(CoordinateMedian\(\)\), or a code"),
    ({"code": Solon}, r"^code=the class Solon: give an instance of a Code, e\.g\. Solon\(s=1, compression=2\)\.$"),
    ({"code": "solon"}, r"^code='solon': give an instance of a Code"),
    ({"aggregator": CoordinateMedian()}, r"^aggregator=CoordinateMedian\(\) has nothing to do with Solon.*Leave aggr"),
    (
        {"f": 2},
        r"^f=2: Solon\(s=1, compression=2\) finds up to s = 1 liars of a group, and all .* be in one: give f up to 1,",
    ),
    ({"f": 1.5}, r"^f=1\.5: Solon.* give f up to 1"),
    ({"f": -1}, r"f=-1"),
    ({"f": "two"}, r"f='two'"),
    ({"arrivals": FixedDelays([0, 1, 0, 0])}, r"^arrivals=FixedDelays.* does not go with code=Solon.*of one step"),
    (
        {"link": EF21(), "compressor": TopK(0.1)},
        r"^link=EF21.* does not go with code=.*makes messages shorter itself.*: leave one",
    ),
    ({"compressor": Cast("bfloat16")}, r"^compressor=Cast.* does not go with code=.*makes messages shorter itself"),
    ({"downlink": Cast("bfloat16")}, r"^downlink=.* does not go with code=.*sends the decoded mean back as it is"),
    ({"preaggregators": [NNM()]}, r"^preaggregators=\[NNM\(\)\] does not go with code=.*leaves liars out itself"),
    ({"weights": [1, 1, 2, 1]}, r"^weights=\[1, 1, 2, 1\] does not go with code=.*has all parts count alike"),
    ({"weights": "samples"}, r"^weights='samples' does not go with code="),
    ({"weights": "samples", "max_share": 0.4}, r"^max_share=0\.4 does not go with code="),
    ({"data": "local"}, r"^data='local' does not go with code=.*several workers compute on the same samples"),
    ({"split_batches": True}, r"^split_batches=True does not go with code=.*deals parts out itself"),
    (
        {"estimator": Storm()},
        r"^estimator=Storm\(\.\.\.\) asks for a second gradient at each worker's own point.*give Gr",
    ),
    ({"estimator": DM21(0.25)}, r"^estimator=DM21\(\.\.\.\) remembers numbers of its worker, and under Solon"),
    ({"estimator": TwoAverages(0.9)}, r"^estimator=TwoAverages\(\.\.\.\) remembers numbers of its worker.*of the mean"),
    (
        {"estimator": WorkerMomentum(0.9, clip=1.0)},
        r"^estimator=WorkerMomentum\(.*\) mixes coordinates, and under Solon",
    ),
    ({"estimator": Neighbours()}, r"^estimator=.*Neighbours\(\) mixes coordinates, and under Solon.*each rank decodes"),
]
ACCEPTED = [
    {},
    {"f": None},
    {"f": 1},
    {"f": 0},
    {"f": "max"},
    {"weights": [2, 2, 2, 2]},
    {"estimator": WorkerMomentum()},
]


def construct(all_arguments: list[dict]) -> list[str]:
    """Construct strategies in a process of its own, where no shape checker speaks before the library does."""
    answers = []
    for arguments in all_arguments:
        try:
            RobustStrategy(**{**SOLON, **arguments})
        except (ValueError, TypeError) as error:
            answers.append(str(error))
        else:
            answers.append("accepted")
    return answers


def test_arguments_are_refused_at_construction(ranks):
    (answers,) = ranks(1).run(construct, [arguments for arguments, _ in ARGUMENTS])
    for answer, (arguments, sentence) in zip(answers, ARGUMENTS, strict=True):
        assert re.search(sentence, answer), (arguments, answer)
        assert "\n" not in answer
    assert ranks(1).run(construct, ACCEPTED) == [["accepted"] * len(ACCEPTED)]


@pytest.mark.parametrize("kind", [Repetition, Cyclic, lambda s: Solon(s, 2)], ids=["Repetition", "Cyclic", "Solon"])
@pytest.mark.parametrize("s", [0, -1, -10])
def test_s_is_a_whole_number_from_1_on(kind, s):
    with pytest.raises(ValueError, match=rf"\(s={s}\): s, how many liars of a group are found, must be a whole number"):
        kind(s)


@pytest.mark.parametrize("compression", [0, -2])
def test_compression_is_a_whole_number_from_1_on(compression):
    with pytest.raises(ValueError, match=rf"Solon\(compression={compression}\): compression, .* must be a whole numb"):
        Solon(1, compression)


class Manual(Classifier):
    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False


class Streaming(IterableDataset):
    def __iter__(self):
        return iter(Points(8))


class OverStream(Classifier):
    def train_dataloader(self):
        return DataLoader(Streaming(), batch_size=4)


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


RUNS = {
    "groups of Solon": (Fit(strategy={**SOLON, "workers": 7}), r"needs groups of .* = 4 workers, .*: take 4 or 8 work"),
    "groups, too few": (Fit(strategy={**SOLON, "workers": 3}), r"cannot be divided into: take 4 workers, or another s"),
    "groups of Repetition": (
        Fit(strategy={"workers": 8, "code": Repetition(2)}),
        r"^Repetition\(s=2\) needs groups of 2 \* s \+ 1 = 5 workers, which 8 workers cannot be divided into: take 5 or 10 workers",
    ),
    "too few for Cyclic": (Fit(strategy={"workers": 4, "code": Cyclic(2)}), r"Cyclic\(s=2\)"),
    "uneven parts": (
        Fit(strategy={"workers": 6, "code": Uneven(1)}),
        r"Uneven\(s=1\) gives workers 1 to 2 parts: let each compute as many\.$",
    ),
    "manual optimization": (
        Fit(strategy=SOLON, module=Manual),
        r"^Manual uses manual optimization, .*under code= a st",
    ),
    "iterable data": (
        Fit(strategy=SOLON, module=OverStream),
        r"^Under code= each part needs a shard of its own, and .* iterable data has none: leave code out",
    ),
    "small data": (
        Fit(Options(samples=3), {"workers": 4, "code": Cyclic(1)}),
        r"3 training samples for 4 (workers|parts)",
    ),
    "LBFGS with a memory": (
        Fit(strategy={**SOLON, "estimator": WorkerMomentum()}, module=Lbfgs),
        "LBFGS evaluates the gradient several times a step",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused_on_every_rank(ranks, name):
    job, sentence = RUNS[name]
    for answer in ranks(2).run(attempt, job, 2):
        assert answer[0] == "ValueError", answer
        assert re.search(sentence, answer[1]), answer


# ---------------------------------------------------------------------- modules that are not deterministic


class Counting(Classifier):
    """Its loss depends on how many of its steps this process has run."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + 0.01 * self.calls)


class OwnDraws(Classifier):
    """Draws from a generator of its own."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.draws = np.random.default_rng(0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        noise = torch.from_numpy(self.draws.normal(size=batch[0].shape)).to(batch[0].dtype)
        return super().training_step((batch[0] + 0.1 * noise, batch[1]), batch_idx)


class FromTheSystem(Classifier):
    """Draws what nobody can draw again."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return super().training_step((batch[0] * (1 + os.urandom(1)[0] / 256 + 0.1), batch[1]), batch_idx)


class OnRankOne(FromTheSystem):
    """Does so on one rank only."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        kind = FromTheSystem if os.environ["LOCAL_RANK"] == "1" else Classifier
        return kind.training_step(self, batch, batch_idx)


class Sometimes(Classifier):
    """Has a loss at every other call."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if self.calls % 2 else None


SAID = (
    r"training_step gave two gradients, ([\d.e-]+|inf) of its length apart for the same batch and random state, on 1 rank, and under code= honest"
    r" workers of a group must agree: let a step depend on batch, parameters, buffers and the global random streams of torch, numpy and random only,"
    r" use deterministic kernels, or leave code out\.$"
)
CODES = [SOLON, {"workers": 3, "code": Repetition(1)}, {"workers": 4, "code": Cyclic(1)}]


@pytest.mark.parametrize("code", CODES, ids=lambda one: type(one["code"]).__name__)
@pytest.mark.parametrize("module", [Counting, OwnDraws, FromTheSystem, Sometimes])
def test_a_module_that_is_not_deterministic_is_refused(ranks, module, code):
    ((kind, said),) = ranks(1).run(attempt, Fit(strategy=code, module=module), 1)
    assert kind == "ValueError", said
    assert re.search(rf"^{module.__name__}\.{SAID}", said), said


def test_it_is_refused_before_the_first_step():
    class Watched(Counting):
        stepped = 0

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            Watched.stepped += 1

    with pytest.raises(ValueError, match="gave two gradients"):
        train(SOLON, module=Watched)
    assert Watched.stepped == 0


@pytest.mark.parametrize("world", [2, 4])
def test_where_one_rank_differs_all_refuse(ranks, world):
    answers = ranks(world).run(attempt, Fit(strategy=SOLON, module=OnRankOne), world)
    for rank, (kind, said) in enumerate(answers):
        assert kind == "ValueError", said
        assert ("of its length apart" in said) == (rank == 1)
        assert "on 1 rank, and under code=" in said


def test_all_ranks_are_counted(ranks):
    for kind, said in ranks(2).run(attempt, Fit(strategy=SOLON, module=OwnDraws), 2):
        assert (kind, "on 2 ranks, and under code=" in said) == ("ValueError", True)


class LaterApart(Classifier):
    """Begins to depend on how many steps this process has run when training has begun."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + 0.1 * (self.calls % 7)) if self.trainer.global_step > 2 else loss


@pytest.mark.parametrize("world", [1, 2])
def test_workers_that_come_apart_later_stop_the_run(ranks, world):
    for kind, said in ranks(world).run(attempt, Fit(strategy=SOLON, module=LaterApart), world):
        assert kind == "TooManyFaults", said
        assert re.search(r"more than 1 of a group lie, or honest workers of a group did not compute the same", said)


def test_what_is_drawn_from_the_global_streams_is_no_reason(ranks):
    noisy = Options(dropout=0.3, batch_norm=True, augment=True, samples=32)
    assert ranks(2).run(attempt, Fit(noisy, SOLON, {"max_epochs": 1}), 2) == [("nothing", "was refused")] * 2


# ---------------------------------------------------------------------- checkpoints


def test_a_file_of_a_run_without_a_code_is_refused_and_the_other_way_round(ranks, tmp_path):
    coded, plain = str(tmp_path / "coded.ckpt"), str(tmp_path / "plain.ckpt")
    mean = {"f": 0, "aggregator": Mean(), "workers": 4}
    once = {"max_epochs": 1}
    ranks(1).run(fit, Fit(strategy=SOLON, trainer=once, save=coded), 1)
    ranks(1).run(fit, Fit(strategy=mean, trainer=once, save=plain), 1)
    for answer in ranks(2).run(attempt, Fit(strategy=SOLON, checkpoint=plain), 2):
        assert answer[0] == "ValueError", answer
        assert re.search(
            "The checkpoint is of a run without a code, .*: resume without code=, or start a new", answer[1]
        )
    for answer in ranks(2).run(attempt, Fit(strategy=mean, checkpoint=coded), 2):
        assert answer[0] == "ValueError", answer
        assert "code" in answer[1], answer


@pytest.mark.parametrize("other", [Cyclic(1), Repetition(1), Solon(2, 2)], ids=str)
def test_a_file_of_another_code_is_refused(ranks, tmp_path, other):
    """Workers of another code have other parts, and other buffers; rows that attackers remember may have another length alone."""
    path, options, once = str(tmp_path / "half.ckpt"), Options(batch_norm=True), {"max_epochs": 1}
    lying = {"workers": 12, "attackers": [1], "attack": Replay(2)}
    ranks(1).run(fit, Fit(options, {"code": Solon(1, 4), **lying}, once, save=path), 1)
    ((kind, said),) = ranks(1).run(attempt, Fit(options, {"code": other, **lying}, checkpoint=path), 1)
    assert kind == "ValueError", said
    assert re.search(r"of a run under another code than .*: resume with its code, or start a new run", said)


def test_a_file_of_steps_that_were_not_taken_is_resumed(ranks, tmp_path):
    path, liars = str(tmp_path / "two.ckpt"), {**SOLON, "attackers": [0, 1], "attack": ReverseGradient()}
    ranks(1).run(
        fit, Fit(strategy=liars, trainer={"max_steps": -1, "limit_train_batches": 2, "max_epochs": 1}, save=path), 1
    )
    again = Fit(strategy=SOLON, trainer={"max_epochs": 2, "limit_train_batches": 2}, checkpoint=path)
    assert ranks(1).run(attempt, again, 1) == [("nothing", "was refused")]
