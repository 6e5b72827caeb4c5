"""``lightning_byz.testing`` as a user meets it: rules in a file of their own, and messages that say what to do."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_byz.aggregators import Aggregator, CoordinateMedian, TrimmedMean
from lightning_byz.attacks import SignFlip
from lightning_byz.preaggregators import NNM
from lightning_byz.testing import check_aggregator, check_attack, check_preaggregator
from lightning_byz.testing.check import require_kind

OWN = '''
import torch
from lightning_byz.aggregators import Aggregator, RowAverage
from lightning_byz.attacks import Attack
from lightning_byz.kernels import nearest_shares
from lightning_byz.preaggregators import PreAggregator


class NearHalf(RowAverage):
    """Average the messages nearest to the coordinate-wise median, half of them by weight."""

    def coefficients(self, stack, *, generator=None):
        distances = stack.squared_distances_to(stack.centre())
        shares = nearest_shares(distances[None], stack.weights, stack.total_weight / 2)[0]
        return shares / shares.sum()


class Careless(Aggregator):
    """The same without a thought for rows that are not finite, or weights."""

    def __call__(self, stack, *, generator=None):
        distances = stack.squared_distances_to(stack.centre())
        return stack.vectors[distances <= distances.median()].mean(0)


class Unmoved(PreAggregator):
    """Leaves rows where they are."""

    condition = "f < W / 2"

    def tolerates(self, weights, f):
        return sum(weights) - 2 * f > 1e-6 * sum(weights)

    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return stack.mix(torch.eye(len(stack.weights), dtype=torch.float64))


class Shout(Attack):
    """Send the opposite of the gradient, a hundredfold."""

    def replace(self, sight):
        return -100 * sight.own
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("own") / "my_rules.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("my_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_correct_rules_pass(own: ModuleType) -> None:
    check_aggregator(own.NearHalf(), cases=40)
    check_preaggregator(own.Unmoved(), cases=20)
    check_preaggregator(own.Unmoved(), following=TrimmedMean(), cases=10, seed=7)
    check_attack(own.Shout(), cases=40)


def test_the_message_says_how_to_see_it_again(own: ModuleType) -> None:
    with pytest.raises(AssertionError) as caught:
        check_aggregator(own.Careless(), laws=["faults"])
    law, case, seen, again = str(caught.value).splitlines()
    assert (
        law
        == "Careless breaks the law 'faults': whatever the rows of f workers hold, the result is finite, and within kappa where it is known"
    )
    assert case.startswith("  case: n=")
    assert all(f" {name}=" in case for name in ("f", "d", "dtype", "honest", "attackers", "seed"))
    assert seen.startswith("  seen: the result is not finite: [nan")
    seed = int(again.split("seed=")[1])
    assert again == f"  this case alone: laws=['faults'], cases=1, seed={seed}"
    with pytest.raises(AssertionError) as once_more:
        check_aggregator(own.Careless(), laws=["faults"], cases=1, seed=seed)
    assert str(once_more.value) == str(caught.value)


def test_errors_of_the_rule_are_failures_with_their_cause(own: ModuleType) -> None:
    class Unfinished(CoordinateMedian):
        def __call__(self, stack, *, generator=None):
            raise KeyError("scale")

    with pytest.raises(AssertionError, match=r"Unfinished.*\n.*\n  seen: KeyError was raised: 'scale'") as caught:
        check_aggregator(Unfinished(), laws=["types"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_cannot_be_checked_is_refused(own: ModuleType) -> None:
    for check, right, wrong in (
        (check_aggregator, CoordinateMedian(), NNM()),
        (check_preaggregator, NNM(), SignFlip()),
        (check_attack, SignFlip(), CoordinateMedian()),
    ):
        with pytest.raises(TypeError, match=r"Aggregator|Attack"):
            check(wrong)
        with pytest.raises(ValueError, match="cases must be at least 1, not 0"):
            check(right, cases=0)
        with pytest.raises(ValueError, match=r"there is no law \['gravity'\]; the laws are \["):
            check(right, laws=["gravity"])


def test_a_class_is_no_rule() -> None:
    with pytest.raises(
        TypeError, match=r"Aggregator expected, not <class .*>; give an instance, TrimmedMean\(\.\.\.\)"
    ):
        require_kind(TrimmedMean, Aggregator, 1)


def test_few_workers_are_enough_for_a_slow_rule(own: ModuleType) -> None:
    seen = []

    class Watched(CoordinateMedian):
        def __call__(self, stack, *, generator=None):
            seen.append(len(stack.weights))
            return super().__call__(stack)

    check_aggregator(Watched(), cases=20, workers=5)
    # a few more rows are there without weight, or as repetitions
    assert max(seen) <= 15


def test_the_checks_do_not_depend_on_assert_statements(tmp_path: Path) -> None:
    """``python -O`` drops these."""
    program = tmp_path / "program.py"
    program.write_text(
        OWN + "\nfrom lightning_byz.testing import check_aggregator\ntry:\n    check_aggregator(Careless(), cases=30)\n"
        "except AssertionError as error:\n    print('caught', error)\n"
    )
    done = subprocess.run([sys.executable, "-O", str(program)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("caught Careless breaks the law")


def test_no_test_library_is_needed() -> None:
    package = Path(__file__).parent.parent / "lightning_byz" / "testing"
    assert not [
        path.name
        for path in package.rglob("*.py")
        if "pytest" in path.read_text() or "\n    assert " in path.read_text()
    ]


def test_random_state_is_as_before() -> None:
    before = torch.get_rng_state()
    check_aggregator(CoordinateMedian(), cases=3)
    assert torch.equal(torch.get_rng_state(), before)
