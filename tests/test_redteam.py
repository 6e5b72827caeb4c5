"""``lightning-byz redteam``: what is searched, that it finds what is there, and that nothing is tried or lost twice."""

import csv
import importlib.util
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_byz import attacks, cli
from lightning_byz.compare import answer, fit
from lightning_byz.compare.fit import Job, perform
from lightning_byz.compare.records import Evaluation, Folder, Record, write_whole
from lightning_byz.redteam import command
from lightning_byz.redteam.halving import halfway
from lightning_byz.redteam.space import catalogue, fixed, ladder

ROOT = Path(__file__).resolve().parent.parent
FIXED = 15  # thirteen kinds, a line search, and the quickstart's own
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="optuna is not installed: pip install 'lightning-byz[redteam]'"
)

Run = Callable[..., str]
Score = Callable[[str, Mapping[str, Any], int, int], float]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, beside the quickstart's config; return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("fit.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())

    def run(*options: str, status: int | None = None, output: str = "out") -> str:
        capfd.readouterr()
        whole = ["redteam", "--config", "fit.yaml", "--output", output, "--processes", "0", *options]
        if status is None:
            cli.main(whole)
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            cli.main(whole)
        code, told = stopped.value.code, capfd.readouterr().err
        assert (1 if isinstance(code, str) else code) == status, (code, told)
        return str(code) if isinstance(code, str) else told

    return run


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], list[str]]:
    """Have runs end with what a function makes of attack, arguments, number of attackers and seed; return the list of ids that ran."""

    def imagine(score: Score) -> list[str]:
        made: list[str] = []

        def performed(job: Job) -> Record:
            options = dict(option.removeprefix("--").split("=", 1) for option in job.arguments[3:])
            attack = json.loads(options["trainer.strategy.attack"]) or {"class_path": "none", "init_args": {}}
            name, count = (
                attack["class_path"].rpartition(".")[2],
                len(json.loads(options["trainer.strategy.attackers"])),
            )
            failure, error, evaluations = "", "", []
            try:
                told = score(name, attack["init_args"], count, int(options["seed_everything"]))
                evaluations = [Evaluation(1, 10, 0.1, None, {"val_accuracy": told, "val_loss": told})]
            except (ZeroDivisionError, OverflowError) as broken:
                failure = str(broken)
                error = "TooManyFaults" if isinstance(broken, OverflowError) else "ZeroDivisionError"
            made.append(job.id)
            folder = Folder(Path(job.output))
            write_whole(folder.path / "cells" / f"{job.id}.yaml", f"seed_everything: {options['seed_everything']}\n")
            folder.save(record := Record(job.id, failure, 0.2, evaluations, error=error))
            return record

        monkeypatch.setattr(answer, "perform", performed)
        return made

    return imagine


def trials_of(output: str = "out") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((Path(output) / "trials.csv").read_text())))


def hill(name: str, arguments: Mapping[str, Any], count: int, seed: int) -> float:
    """Accuracy 0.9, in a dip around ALIE(z=5), deeper with more attackers; ALIE's default is far from it."""
    z = arguments.get("z") if name == "ALIE" else None
    return 0.9 if name == "none" else 0.8 if z is None or z < 0 else 0.8 - 0.3 * count / math.cosh(2 * math.log(z / 5))


def test_every_attack_is_searched() -> None:
    kinds = catalogue([0, 1])
    assert {kind.name for kind in kinds} == set(attacks.__all__) - {"Attack", "Sight", "LabelFlip"}
    for kind in kinds:
        assert set(kind.arguments) <= set(kind.defaults)
        parameters = kind.parameters()
        if kind.name == "ALIE":
            assert parameters == {"kind": "ALIE"}  # its default is no number
        else:
            assert kind.chosen(parameters) == kind.fixed
    first, later = fixed(kinds), ladder(kinds)
    assert len(first) + 1 == FIXED
    assert len({str(one) for one in [*later, *(parameters for parameters, _ in first)]}) == len(later) + len(first)
    assert [one["kind"] for one in later[:2]] == ["ReverseGradient", "IPM"]
    assert {(one["ALIE.z"], one["ALIE.z.sign"]) for one in later if one["kind"] == "ALIE"} == {(1.0, "-"), (1.0, "+")}


@needs_optuna
def test_it_finds_a_strength_that_no_fixed_attack_has(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    made = imagined(hill)
    printed = run("--budget", "60")
    trials = trials_of()
    assert len(made) == len(set(made)) == 61 + 5  # without attack on five more seeds
    purposes = ["none", *["fixed"] * FIXED, *["search"] * (45 - FIXED), "none", *["again"] * 3]
    assert [trial["purpose"] for trial in trials] == purposes
    assert [trial["n"] for trial in trials] == ["1"] * 46 + ["5"] * 4
    assert len({(trial["config"], trial["attackers"]) for trial in trials}) == 46
    worst = min(trials[47:], key=lambda trial: float(trial["val_accuracy"]))
    assert float(worst["val_accuracy"]) == pytest.approx(min(float(trial["val_accuracy"]) for trial in trials))
    assert worst["attack"].startswith("ALIE(z=")
    assert (worst["attackers"], 4 < json.loads(worst["config"])["init_args"]["z"] < 6.3) == ("6 7", True)
    assert {trial["attackers"] for trial in trials[FIXED + 1 :]} >= {"6", "6 7"}
    assert float(worst["difference"]) == pytest.approx(float(worst["val_accuracy"]) - 0.9)
    gap = float(worst["val_accuracy"]) - 0.8
    assert f"{worst['attack']} by 2 hurts more than the best fixed attack, SignFlip by 2, by {gap:+.4f} ± " in printed
    config = (Path("out") / "worst.yaml").read_text()
    assert config.endswith((Path("out") / "cells" / f"{worst['runs'].split()[0]}.yaml").read_text())
    assert f"# Trial {worst['trial']} of fit.yaml: {worst['attack']} by 2; val_accuracy " in config


@needs_optuna
@pytest.mark.parametrize("runs", [0, 1, 9, 25, 31])
def test_a_search_goes_on_where_it_was_stopped(run: Run, imagined: Callable[[Score], list[str]], runs: int) -> None:
    """The same trials as a search that nothing stopped, and no run made twice."""
    imagined(hill)
    run("--budget", "30", output="whole")

    def stopping(*given: Any) -> float:
        if len(made) == runs:
            raise KeyboardInterrupt
        return hill(*given)

    made = imagined(stopping)
    assert f"stopped: {runs} of 33 runs are safe in out/records; the same command goes on" in run(
        "--budget", "30", status=130
    )
    again = imagined(hill)
    run("--budget", "30")
    assert len(again) == 33 - runs
    assert (Path("out") / "trials.csv").read_text() == (Path("whole") / "trials.csv").read_text()


@needs_optuna
@pytest.mark.parametrize("ahead", [1, 3])
def test_a_budget_may_grow(
    run: Run, imagined: Callable[[Score], list[str]], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = command.planned
    monkeypatch.setattr(command, "planned", lambda *given: replace(planned(*given), ahead=ahead))
    made = imagined(hill)
    run("--budget", "40", output="whole")
    count = len(made)
    run("--budget", "26")
    before = made[count:]
    monkeypatch.setattr(command, "planned", planned)  # other processes: the search stays as it was begun
    run("--budget", "40")
    after = made[count + len(before) :]
    assert len(after) == len(set(after)) >= 12  # eleven attacks more, and at least one on a seed more
    assert not set(after) & set(before)
    assert trials_of() == trials_of("whole")


@needs_optuna
def test_a_budget_does_not_shrink(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    made = imagined(hill)
    run("--budget", "26")
    before, count = trials_of(), len(made)
    said = "error: out holds a search with budget=26, not 20: a budget may grow, not shrink; give --budget 26 or more, or another"
    assert said in run("--budget", "20", status=2)
    assert (trials_of(), len(made)) == (before, count)


@needs_optuna
def test_luck_on_one_seed_is_not_the_worst(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    """Three that differ in more than numbers, the best of the fixed among them, are tried again on seeds that no search has seen."""

    def score(name: str, arguments: Mapping[str, Any], count: int, seed: int) -> float:
        if name == "none":
            return 0.9 + 0.01 * seed
        if name == "Replay":
            return 0.3
        if name == "BitFlip":
            return 0.1 if seed < 3 else 0.8
        return 0.2 if name == "MinSum" and arguments["deviation"] == "std" and seed < 3 else 0.7

    imagined(score)
    printed = run("--budget", "40", "--seeds", "1", "2")
    trials = trials_of()
    again = [trial for trial in trials if trial["purpose"] == "again"]
    assert [trial["n"] for trial in again] == ["6"] * 3
    assert {trial["attack"].partition("(")[0] for trial in again} == {"BitFlip", "MinSum", "Replay"}
    assert "No attack that was searched hurts more than the fixed Replay(delay=10) by 2." in printed
    assert "Replay" in (Path("out") / "worst.yaml").read_text().splitlines()[0]
    replay = next(trial for trial in again if trial["attack"].startswith("Replay"))
    assert float(replay["difference"]) == pytest.approx(0.3 - 0.9 - 0.01 * 5.5)  # the seeds 3 to 8


def test_line_searches_about_the_best() -> None:
    kinds = {kind.name: kind for kind in catalogue([0])}
    known = [
        ({"kind": "IPM", "IPM.epsilon": 1.0, "attackers": 2}, 5.0),
        ({"kind": "IPM", "IPM.epsilon": 2.0, "attackers": 2}, 4.0),
        ({"kind": "IPM", "IPM.epsilon": 1.1, "attackers": 1}, 1.0),
        ({"kind": "Gaussian", "Gaussian.deviation": 1e3, "attackers": 2}, 3.0),
        ({"kind": "SignFlip", "attackers": 2}, 9.0),
    ]
    found = [halfway(kinds, known, place=place) for place in range(4)]
    assert found[0] == {
        "kind": "IPM",
        "IPM.epsilon": pytest.approx(0.5),
        "attackers": 2,
    }  # half as strong; twice has been tried
    assert found[1] == {"kind": "Gaussian", "Gaussian.deviation": pytest.approx(500), "attackers": 2}
    assert found[3] is None
    assert halfway(kinds, [*known, ({"kind": "IPM", "IPM.epsilon": 3.0, "attackers": 2}, math.inf)]) is None


@needs_optuna
def test_a_run_that_is_stopped_is_worst_and_one_that_fails_is_none(
    run: Run, imagined: Callable[[Score], list[str]]
) -> None:
    def score(name: str, arguments: Mapping[str, Any], count: int, seed: int) -> float:
        if name == "Gaussian":
            return 1 / 0
        if name == "Constant" and seed == 2:
            raise OverflowError("3 steps in a row could not be taken.")
        return 0.1 if name == "SignFlip" else 0.9

    imagined(score)
    printed = run("--budget", str(FIXED), "--seeds", "1", "2")
    assert (
        "1 of 16 trials failed, and are taken for no harm; Gaussian(deviation=200.0) by 2: division by zero" in printed
    )
    assert "more than the fixed Constant(value=-100.0) by 2. It ends the run: 3 steps in a row" in printed
    found = {trial["attack"]: trial for trial in trials_of()}
    assert found["Gaussian(deviation=200.0)"]["failure"] == "division by zero"
    assert found["Constant(value=-100.0)"]["n"] == "0"
    imagined(lambda name, *_: 0.9 if name == "none" else 1 / 0)
    assert "no attack has finished; dead/trials.csv says why" in run("--budget", "20", status=1, output="dead")
    assert not (Path("dead") / "worst.yaml").exists()


@needs_optuna
def test_without_a_run_that_works_nothing_is_attacked(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    """And what is mended runs again with --retry; an attack that leaves no model is no fault to mend."""
    made = imagined(lambda *given: 1 / 0)
    said = "error: the run without attack failed: division by zero. No attack was tried: see out/logs, and give"
    assert said in run("--budget", "15", status=1)
    assert said in run("--budget", "15", status=1)
    assert len(made) == 1

    def stopping(name: str, *given: Any) -> float:
        if name == "Gaussian":
            raise OverflowError("3 steps in a row could not be taken.")
        return 1 / 0 if name == "IPM" else 0.9

    assert len(made := imagined(stopping)) == 0
    run("--budget", "15", "--retry")
    assert len(made) == 16
    made = imagined(hill)
    run("--budget", "15", "--retry")
    assert len(made) == 1


@needs_optuna
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"f": math.nan}, "f=nan of 8 workers does not say how many may attack: give --attackers"),
        ({"attackers": [6, 6]}, "attackers=[6, 6]: give different ids from 0 to 7, one per attacker."),
        ({"attackers": [-1]}, "attackers=[-1]: give different ids from 0 to 7, one per attacker."),
        ({"workers": 1, "attackers": []}, "workers=1: redteam needs at least 2, of whom one may attack."),
        ({"workers": None}, "devices=auto does not say how many workers there are: give trainer.devices a number"),
    ],
)
def test_a_config_that_leaves_open_who_attacks(run: Run, changed: Mapping[str, Any], said: str) -> None:
    config = yaml.safe_load(Path("fit.yaml").read_text())
    config["trainer"]["strategy"]["init_args"].update(changed)
    config["trainer"]["devices"] = "auto"
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    assert f"error: {said}" in run("--budget", "20", status=2)
    assert not Path("out").exists()


OWN_STRATEGY = """
from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CoordinateMedian


class Closed(RobustStrategy):
    def __init__(self):
        super().__init__(f=2, aggregator=CoordinateMedian(), workers=8)
"""


@needs_optuna
def test_a_strategy_that_hides_its_arguments(run: Run) -> None:
    Path("closed.py").write_text(OWN_STRATEGY)
    config = yaml.safe_load(Path("fit.yaml").read_text())
    config["trainer"]["strategy"] = {"class_path": "closed.Closed"}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    said = "error: closed.Closed takes no workers, f, attackers or attack: redteam reads and writes them in the config"
    assert said in run("--budget", "20", status=2)


@needs_optuna
def test_a_folder_that_cannot_be_used(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    imagined(hill)
    said = (
        "fit.yaml/out cannot hold the results: [Errno 20] Not a directory: 'fit.yaml/out/records'; give another output."
    )
    assert said in run("--budget", "20", status=2, output="fit.yaml/out")
    write_whole(Path("broken") / "search.json", "{")
    said = "broken/search.json says nothing of a search that this command could go on with: give another --output."
    assert said in run("--budget", "20", status=2, output="broken")


@needs_optuna
def test_the_attack_of_the_config_may_be_no_number(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    """It is one of the fixed attacks then, and written as they are."""
    imagined(hill)
    config = yaml.safe_load(Path("fit.yaml").read_text())
    config["trainer"]["strategy"]["init_args"]["attack"] = {"class_path": "NonFinite", "init_args": {"value": math.inf}}
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    run("--budget", "15")
    assert trials_of()[15]["attack"] == "NonFinite(value=.inf)"


def test_a_run_told_to_end_is_none_that_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*given: Any, **options: Any) -> None:
        raise SIGTERMException

    monkeypatch.setattr(fit, "_Fit", ended)
    with pytest.raises(SIGTERMException):
        perform(Job("again", [], "out"))
    assert not Folder(Path("out")).records()


@needs_optuna
def test_a_metric_that_is_no_number_is_worst_and_seeds_are_averaged(
    run: Run, imagined: Callable[[Score], list[str]]
) -> None:
    def score(name: str, arguments: Mapping[str, Any], count: int, seed: int) -> float:
        return {"none": 1.0 + seed, "Replay": math.nan, "SignFlip": 5.0 * seed}.get(name, 0.5)

    imagined(score)
    printed = run("--budget", "20", "--metric", "val_loss", "--mode", "min", "--seeds", "1", "3")
    none, flip = trials_of()[:2]
    assert [float(none["val_loss"]), float(flip["val_loss"]), float(flip["standard_error"])] == [3, 10, 5]
    assert (float(flip["difference"]), flip["n"], len(flip["runs"].split())) == (7, "2", 2)
    assert "the fixed Replay(delay=10) by 2" in printed


@needs_optuna
def test_who_attacks(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    """The config's attackers first, then the last of the others; whom Mimic copies never attacks."""
    imagined(hill)
    text = Path("fit.yaml").read_text()
    Path("fit.yaml").write_text(text.replace("attackers: [6, 7]", "attackers: [3]"))
    run("--budget", "60", "--attackers", "4")
    trials = trials_of()
    assert {trial["attackers"] for trial in trials} == {"", "3", "3 7", "3 6 7", "3 5 6 7"}
    assert {trial["attackers"] for trial in trials[1 : FIXED + 1]} == {"3 5 6 7"}
    mimicked = {trial["attack"] for trial in trials if trial["attack"].startswith("Mimic")}
    assert not mimicked & {f"Mimic(worker={one})" for one in (3, 5, 6, 7)}
    Path("fit.yaml").write_text(text.replace("f: 2", "f: max"))
    run("--budget", "15", output="max")
    assert trials_of("max")[1]["attackers"] == "6 7"


@needs_optuna
def test_what_a_folder_holds_is_left_alone(run: Run, imagined: Callable[[Score], list[str]]) -> None:
    made = imagined(hill)
    misspelt = ("--budget", "16", "--metric", "val_acuracy", "--mode", "max")
    said = "metric=val_acuracy: the first run has not logged it, and is kept in out: did you mean val_accuracy?"
    assert said in run(*misspelt, status=2)
    assert said in run(*misspelt, status=2)
    assert len(made) == 1
    run("--budget", "16")  # nothing was judged by the other metric
    assert len(made) == 17
    before = (Path("out") / "trials.csv").read_text()
    way = "give another --output, or the search as it was; its budget may grow."
    for options, what in (
        (["--metric", "val_loss", "--mode", "min"], "with metric=val_accuracy, not val_loss"),
        (["--seeds", "5"], "with seeds=[1], not [5]"),
        (["--attackers", "1"], "with attackers=[6, 7], not [6]"),
    ):
        assert f"out holds a search {what}: {way}" in run("--budget", "20", *options, status=2)
    Path("fit.yaml").write_text(Path("fit.yaml").read_text().replace("0.5", "0.4"))
    assert f"out holds a search of another config: {way}" in run("--budget", "20", status=2)
    assert len(made) == 17
    assert (Path("out") / "trials.csv").read_text() == before
    Folder(Path("grid")).save(Record("0123456789"))
    assert "grid holds 1 runs of no search: give another --output." in run("--budget", "20", status=2, output="grid")


def test_without_optuna_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("lightning_byz.redteam.")]:
        if name.endswith((".search", ".sampler")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = "error: redteam searches with optuna, which is not installed: pip install 'lightning-byz[redteam]'.\n"
    assert run("--budget", "20", status=2) == said
    assert not Path("out").exists()


@pytest.mark.timeout(400)
def test_a_run_on_two_ranks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made in processes of its own, by the launcher of Lightning, and leaves one record; also where this one has trained before."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    config = yaml.safe_load(Path("fit.yaml").read_text())
    config["trainer"].update(
        devices=2, max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False, callbacks=[]
    )
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    arguments = ["fit", "--config", "fit.yaml", "--trainer.enable_checkpointing=false"]
    assert answer.answer(Job("two", arguments, "out")) == ""
    (record,) = Folder(Path("out")).records().values()
    assert (record.failure, [one.step for one in record.evaluations]) == ("", [2])
    assert "val_accuracy" in record.evaluations[0].metrics


OWN = """
from lightning_byz.demos import DigitsData


class Untested(DigitsData):
    def test_dataloader(self):
        raise RuntimeError("test data was read")
"""


@needs_optuna
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker")
def test_it_breaks_the_mean_of_a_real_run(run: Run) -> None:
    """Two attackers of eight are enough; the config that is left replays it to the bit; nobody reads test data."""
    Path("own.py").write_text(OWN)
    config = yaml.safe_load(Path("fit.yaml").read_text())
    config["trainer"].update(max_epochs=1, limit_train_batches=8, gradient_clip_val=None, callbacks=[])
    config["trainer"]["strategy"]["init_args"].update(aggregator="Mean", preaggregators=[])
    config["data"]["class_path"] = "own.Untested"
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    run("--budget", str(FIXED + 2))
    trials = trials_of()
    scores = [float(trial["val_accuracy"]) for trial in trials if trial["n"] == "1"]
    assert not trials[0]["failure"]
    assert scores[0] > 0.35
    assert min(scores) < 0.15
    note = (Path("out") / "worst.yaml").read_text().splitlines()[0]
    worst = trials[int(note.split()[2])]
    kept = Folder(Path("out")).records()[worst["runs"]]
    assert perform(Job("again", ["fit", "--config", "out/worst.yaml"], "again")).bits == kept.bits
