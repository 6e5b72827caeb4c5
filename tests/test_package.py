"""The repository checks itself: exports, floors, forbidden calls, sizes, metadata."""

import ast
import importlib
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lightning_byz
from lightning_byz.versions import TESTED
from tests.forked import forks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_byz"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = sorted(
    path for folder in ("lightning_byz", "benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
)

FLOORS = {
    0: {
        "stack",
        "slice",
        "blocks",
        "facts",
        "errors",
        "random",
        "flat",
        "kernels",
        "rule",
        "versions",
        "memory",
        "census",
        "inside_torch",
        "threads",
    },
    1: {"aggregators", "preaggregators", "attacks", "compressors", "codes", "estimators", "links", "arrivals"},
    2: {"exchange"},
    3: {"rounds", "optimizers", "serving", "testing"},
    4: {"strategies", "data", "metrics", "callbacks", "demos"},
    5: {"cli", "compare", "redteam", "kinds", "mistakes", "__main__", "__init__"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
RULES = ("aggregators", "preaggregators", "attacks", "estimators", "compressors", "codes")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> set[str]:
    """Return the full names that a file imports; for ``from a import b``, both ``a`` and ``a.b``."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def calls_of(path: Path) -> list[tuple[str, ast.Call]]:
    """Return each call with the dotted name of what is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor: enter it in FLOORS"
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("lightning_byz.")}
    rooms = {name for name in used if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    above = {name for name in rooms if FLOOR[name] > FLOOR[room]}
    assert not above, f"{room} (floor {FLOOR[room]}) imports {above}"
    if room not in ("cli", "kinds", "__main__"):
        assert "lightning_byz" not in imports_of(path) or room == "__init__", (
            "import from the room, not from the package's front door"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_outside_libraries_stay_on_their_floors(path: Path) -> None:
    floor, outside = FLOOR[room_of(path)], {name.split(".")[0] for name in imports_of(path)}
    if floor < 4:
        assert not outside & {"lightning", "pytorch_lightning", "torchmetrics", "rich", "jsonargparse"}
    if room_of(path) not in ("exchange", "strategies"):
        assert not {name for name in imports_of(path) if name.startswith("torch.distributed")}


def test_demos_know_nothing_of_this_package() -> None:
    for path in (PACKAGE / "demos").glob("*.py"):
        assert all(
            name.startswith("lightning_byz.demos") for name in imports_of(path) if name.startswith("lightning_byz")
        )


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_no_future_annotations(path: Path) -> None:
    assert "__future__" not in imports_of(path)  # they would silently switch shape checks off


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    modules = {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "shelve",
        "marshal",
        "torch.distributed.rpc",
        "torch.distributed.checkpoint",
    }
    assert not {
        name for name in imports_of(path) if any(name == module or name.startswith(f"{module}.") for module in modules)
    }
    for name, call in calls_of(path):
        method = name.split(".")[-1]
        assert not re.search(r"_object(_list)?$", method), f"{name} pickles"
        if name == "torch.load":
            assert any(
                keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in call.keywords
            ), "torch.load unpickles"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250, "past 250 lines it is two things"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=name_of)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_exports_are_all(path: Path) -> None:
    """A package binds exactly the names of ``__all__``, at once or when asked, apart from its own submodules."""
    package = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    names = {name for name in {*vars(package), *dir(package)} if not name.startswith("_")}
    bound = {name for name in names if not inspect.ismodule(getattr(package, name))}
    exported = [name for name in package.__all__ if not name.startswith("_")]
    assert sorted(exported) == sorted(bound)
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)


LOADED = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
LIGHTNING = {
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "pytorch_lightning",
    "torchmetrics",
    "rich",
    "jsonargparse",
}
WITHOUT = (
    "import lightning_byz",
    "from lightning_byz import Slice, Stack, ToleranceError, TooManyFaults",
    "from lightning_byz.aggregators import Krum",
    "from lightning_byz.aggregators import *",
    "from lightning_byz.preaggregators import *",
    "from lightning_byz.attacks import *",
    "from lightning_byz.estimators import *",
    "from lightning_byz.compressors import *",
    "from lightning_byz.codes import *",
    "from lightning_byz.exchange import *",
    "from lightning_byz.optimizers import *",
    "from lightning_byz.data import *",
    "from lightning_byz.testing import *",
    "import lightning_byz; lightning_byz.aggregators.Krum(), dir(lightning_byz)",
)


def test_a_new_process_loads_torch_and_no_lightning() -> None:
    command = [sys.executable, "-c", f"import lightning_byz\n{LOADED}"]
    loaded = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split())
    assert {"torch", "lightning_byz"} <= loaded
    assert not loaded & LIGHTNING


@pytest.fixture(scope="module")
def after_torch() -> Iterator[Callable[[str], str]]:
    with forks("import torch") as answer:
        yield answer


@pytest.mark.parametrize("statement", WITHOUT)
def test_what_is_no_strategy_loads_no_lightning(after_torch: Callable[[str], str], statement: str) -> None:
    names = set(after_torch(f"{statement}\n{LOADED}").split())
    assert "lightning_byz" in names
    assert not names & LIGHTNING


REGISTERED = {
    "import lightning.pytorch as pl; import lightning_byz": True,
    "from lightning.pytorch import Trainer; from lightning_byz.aggregators import Krum": True,
    "from lightning_byz import RobustStrategy": True,
    "import lightning_byz; lightning_byz.RobustStrategy": True,
    "from lightning_byz import *": True,
    "import lightning_byz.strategies": True,
    "from lightning_byz import WorkerMonitor": True,
    "import lightning_byz; import lightning.pytorch": False,
    "import pytorch_lightning; import lightning_byz": False,
}


@pytest.fixture(scope="module")
def after_metrics() -> Iterator[Callable[[str], str]]:
    with forks("import torchmetrics, sys; assert not {'lightning', 'lightning_byz'} & {*sys.modules}") as answer:
        yield answer


@pytest.mark.parametrize("statement", REGISTERED)
def test_the_name_robust_is_registered_where_lightning_is(after_metrics: Callable[[str], str], statement: str) -> None:
    look = "from lightning.pytorch.strategies import StrategyRegistry; print('robust' in StrategyRegistry)"
    assert after_metrics(f"{statement}\n{look}") == str(REGISTERED[statement])


def test_the_front_door_opens_every_room() -> None:
    """Each public package of the library is an attribute of ``lightning_byz``, imported or not; nothing else is made up."""
    inner = {"kernels", "rounds", "serving", "compare", "redteam"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - inner
    assert set(lightning_byz._ROOMS) == rooms
    assert all(inspect.ismodule(getattr(lightning_byz, room)) for room in rooms)
    assert rooms | set(lightning_byz.__all__) <= set(dir(lightning_byz))
    with pytest.raises(AttributeError, match="module 'lightning_byz' has no attribute 'Krum'"):
        lightning_byz.Krum  # noqa: B018


def test_help_and_pickle_know_the_front_door() -> None:
    text = pydoc.plain(pydoc.render_doc(lightning_byz))
    assert all(f"class {name}" in text for name in lightning_byz.__all__)
    for name in lightning_byz.__all__:
        exported = getattr(lightning_byz, name)
        assert pickle.loads(pickle.dumps(exported)) is exported


@pytest.mark.parametrize("family", RULES)
def test_every_rule_is_exported(family: str) -> None:
    """Every public class of a family's files is a name of the family, and shows itself in an example."""
    package = importlib.import_module(f"lightning_byz.{family}")
    for path in (PACKAGE / family).glob("*.py"):
        module = importlib.import_module(f"lightning_byz.{family}.{path.stem}") if path.stem != "__init__" else package
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert name in package.__all__
                if not inspect.isabstract(value) and value.__bases__[0].__name__ != "ABC":
                    assert ">>>" in (value.__doc__ or ""), f"{name} has no example"


def test_versions_have_no_caps_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    assert not [
        requirement for requirement in [*project["dependencies"], *extras] if "<" in requirement or "==" in requirement
    ]
    tested = dict(
        line.split(" ;")[0].split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for name, minors in TESTED.items():
        assert ".".join(tested[name].split(".")[:2]) in minors
    required = {re.split(r"[\[><=]", requirement)[0] for requirement in [*project["dependencies"], *extras]} - {
        "lightning-byz",
        "wandb",
    }
    assert required <= set(tested)


def test_changelog_knows_this_version() -> None:
    assert f"## [{lightning_byz.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
