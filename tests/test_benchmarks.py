"""The benchmarks run with small sizes, and print tables that are whole where there is no terminal."""

import math
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

PATHS = ["compiled", "torch"] if find_spec("numba") else ["torch"]
ROOT = Path(__file__).resolve().parent.parent


def run(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)


def rows_of(name: str, *arguments: str, folder: Path) -> list[list[str]]:
    """Return the cells of all tables that a benchmark prints, none of them cut off."""
    done = run(name, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]


def is_spread(median: str, cell: str) -> bool:
    smallest, largest = map(float, cell.split(" - "))
    return 0 < smallest <= float(median) <= largest < math.inf


def test_step(tmp_path: Path) -> None:
    """A row for each strategy, with ratios of both times, and no process left behind."""
    rules = "[{class_path: CTMA, init_args: {base: CoordinateMedian}}, own_average.OwnAverage]"
    small = ("--ranks=3", "--pairs=1", "--steps=1", "--timeout=120", f"--aggregators={rules}")
    rows = {name: cells for name, *cells in rows_of("step", *small, folder=tmp_path)}
    assert list(rows) == [
        "DDPStrategy",
        "DDPStrategy(gradient_as_bucket_view=True)",
        "CTMA(base=CoordinateMedian()), f = 1",
        "OwnAverage, f = 0",
    ]
    assert rows["DDPStrategy"][1] == rows["DDPStrategy"][4] == "1.00"
    for cells in rows.values():
        assert is_spread(*cells[1:3])
        assert is_spread(*cells[4:6])
        assert float(cells[0]) > 0
        assert float(cells[3]) > 0
        assert float(cells[6]) > 100


def test_step_ends_with_its_time(tmp_path: Path) -> None:
    done = run("step", "--ranks=2", "--f=0", "--pairs=50", "--timeout=0.5", folder=tmp_path)
    assert done.returncode == 1
    assert "--timeout=0.5" in done.stderr


def test_step_says_in_one_line_which_f_is_too_large(tmp_path: Path) -> None:
    done = run("step", "--ranks=2", "--pairs=1", "--aggregators=[CoordinateMedian]", "--f=1", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: CoordinateMedian cannot tolerate f = 1 of the total weight W = 2")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("rule", ["CoordinateMedian", "{class_path: DnC, init_args: {iterations: 1}}"])
def test_simulation(tmp_path: Path, rule: str) -> None:
    """Both sides end with the same parameters, or the benchmark would not end well; a rule that draws is let through."""
    small = ("--workers=5", "--f=1", "--batch=2", "--pairs=2", "--steps=2", f"--aggregator={rule}")
    rows = rows_of("simulation", *small, folder=tmp_path)
    assert [row[0] for row in rows] == ["loop by hand", "Trainer.fit with RobustStrategy"] * 2
    for row in rows:
        assert is_spread(*row[2:4])
        assert is_spread(*row[5:7])
    assert all(row[2] == row[5] == "1.00" for row in rows[::2])


def test_flatten(tmp_path: Path) -> None:
    rows = rows_of("flatten", "--parameters=8", "--rounds=2", "--repeats=2", folder=tmp_path)
    assert [row[0] for row in rows] == ["flatten", "flatten", "write back", "write back", "both", "both"]
    assert [row[1] for row in rows] == ["library", "torch.cat, _foreach_copy_"] * 3
    assert all(is_spread(*row[4:6]) for row in rows)
    assert all(row[4] == "1.00" for row in rows[1::2])


def test_memory(tmp_path: Path) -> None:
    """DDPStrategy has the gradients and the buckets that travel, which is known."""
    (name, *ddp), (robust, *cells) = rows_of("memory", "--workers=[2]", "--width=512", folder=tmp_path)
    assert (name, robust, ddp[0], cells[:2]) == ("DDPStrategy", "CoordinateMedian()", "1", ["2", "5.00"])
    assert 1.99 <= float(ddp[2]) < 3
    assert 2 < float(cells[2]) < 20
    assert float(cells[3]) > 1


def test_anytime(tmp_path: Path) -> None:
    """The hooks keep the iterate and the point before the step, which is known."""
    small = ("--width=256", "--layers=2", "--batch=2", "--rounds=2", "--repeats=1", "--schedule={gamma: 0.1}")
    done = run("anytime", *small, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = re.search(r"kept beside them: ([\d.]+) copies", " ".join(done.stdout.split()))
    assert 1.95 < float(kept[1]) < 2.1  # blocks are of whole pages, and biases too small for the account
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    names = ["a copy", "a training step", "hooks alone", "SGD", "SGD + hooks", "AdamW", "AdamW + hooks"]
    assert [row[0] for row in rows] == names
    assert all(is_spread(*row[3:5]) and is_spread(*row[5:7]) for row in rows)
    assert rows[0][3] == rows[1][5] == "1.00"


def test_rules(tmp_path: Path) -> None:
    rows = rows_of(
        "rules", "--workers=[4]", "--coordinates=[64]", "--rounds=2", "--rules=[Krum, Bulyan]", folder=tmp_path
    )
    assert [row[0] for row in rows[:3]] == ["Bulyan", "Krum", "MultiKrum"]
    for _, *cells in rows:
        if cells[0] != "refused":
            assert is_spread(*cells[:2]) if "compiled" in PATHS else cells[:3] == ["-", "-", "-"]
            assert is_spread(*cells[3:5])


def test_contention(tmp_path: Path) -> None:
    """A row for each rule beside that of the sort, and the busy processes end with the benchmark."""
    small = ("--workers=5", "--coordinates=1000", "--rounds=2", "--processes=1", "--rules=[Krum, Bulyan]")
    rows = {name: cells for name, *cells in rows_of("contention", *small, folder=tmp_path)}
    names = [f"{rule}, {path}" for rule in ("Krum", "MultiKrum") for path in PATHS]  # Bulyan refuses
    assert list(rows) == ["torch.sort", *names]
    assert rows["torch.sort"][4] == "1.00"
    for cells in rows.values():
        assert all(float(time.removesuffix(" ms")) >= 0 for time in cells[:2])
        assert is_spread(*cells[2:4])
        assert float(cells[4]) > 0


def test_contention_leaves_nobody_busy(tmp_path: Path) -> None:
    """Not when it is killed, either."""
    command = [sys.executable, str(ROOT / "benchmarks" / "contention.py"), "--coordinates=1000", "--rounds=1000000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as benchmark:
        own: set[int] = set()
        for _ in range(600):
            time.sleep(0.05)
            own = {child for child in processes() if parent_of(child) == benchmark.pid}
            if own:
                break
        benchmark.kill()
    assert own
    for _ in range(200):
        time.sleep(0.05)
        if not own & processes():
            break
    assert not own & processes()


def processes() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}


def parent_of(process: int) -> int:
    """Zero if it has ended."""
    try:
        return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_rounding(tmp_path: Path) -> None:
    """The theory's schedule multiplies rounding by the number of the step; the others do not."""
    done = run("rounding", "--steps=[300]", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    theory, constant, released = map(float, re.findall(r"\d\.\de-\d\d", done.stdout))
    assert constant < 1e-5
    assert released < 1e-5
    assert theory > 3 * max(constant, released)


def test_compare(tmp_path: Path) -> None:
    """Overheads by both clocks, and a row per number of processes."""
    rows = rows_of("compare", "--runs=2", "--epochs=1", "--rounds=1", "--repeats=1", folder=tmp_path)
    (wall, *one), (processor, *two), first, second = rows
    assert (wall, processor, first[0], second[0]) == ("wall", "processor", "1", "2")
    assert is_spread(*one[:2]) and is_spread(*two[:2])  # noqa: PT018
    assert first[2] == first[5] == "1.00"
    for row in (first, second):
        assert is_spread(*row[2:4])
        assert is_spread(*row[5:7])
        assert float(row[8]) < float(row[4]) < float(row[7]) + 0.1  # alone, on free cores, of all processors


def test_against_byzfl(tmp_path: Path) -> None:
    """Both sides end with the same parameters, or the benchmark would not end well; without ByzFL it says so."""
    small = ("--networks=[logreg_mnist]", "--workers=5", "--f=1", "--batch=2", "--pairs=2", "--steps=2")
    if find_spec("byzfl") is None:
        done = run("against_byzfl", *small, folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("skipped: ByzFL is not installed")
        return
    rows = rows_of("against_byzfl", *small, folder=tmp_path)
    assert [row[0] for row in rows] == ["ByzFL's loop", "Trainer.fit with RobustStrategy", "the gradients alone"]
    assert all(is_spread(*row[2:4]) and is_spread(*row[5:7]) for row in rows)
    assert rows[0][2] == rows[0][5] == "1.00"


def test_arrivals(tmp_path: Path) -> None:
    """Ratios of a fit with arrivals to each of the others."""
    small = ("--workers=5", "--f=2", "--attackers=2", "--batch=2", "--pairs=1", "--steps=6")
    rows = rows_of("arrivals", *small, folder=tmp_path)
    assert len(rows) == 3
    assert rows[0][2] == rows[0][5] == ""
    for row in rows[1:]:
        assert is_spread(*row[2:4])
        assert is_spread(*row[5:7])


def test_staleness(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install lightning-byz[plots]")
    names = [f"worker_{name}/{worker}" for name in ("age", "delivered", "weight") for worker in range(2)]
    (tmp_path / "log.csv").write_text(f"step,{','.join(names)}\n0,0,3,1,0,0.5,0.5\n\n2,1,4,1,1,0.6,0.4\n")
    done = run("staleness", "log.csv", "--attackers=[1]", folder=tmp_path)
    assert done.stdout == "2 workers: staleness.png\n", done.stderr
    assert (tmp_path / "staleness.png").stat().st_size > 5000
    (tmp_path / "log.csv").write_text("step\n1\n")
    assert "has no worker_age/0" in run("staleness", "log.csv", folder=tmp_path).stderr


def test_compressors(tmp_path: Path) -> None:
    """A row for each compressor, bytes counted, and one for each kind of vectors."""
    rows = rows_of("compressors", "--coordinates=[20000]", "--rounds=1", folder=tmp_path)
    assert [row[0].partition("(")[0] for row in rows[:12]] == [
        *("Identity", "TopK", "TopK", "RandomK", "RandomK", "ScaledSign"),
        *("Quantize", "Quantize", "Quantize", "Cast", "Cast", "LowRank"),
    ]
    assert [row[1] for row in rows[:2]] == ["100.000%", "2.000%"]
    assert [row[0] for row in rows[12:]] == ["normal", "constant", "three values", "mostly zero", "resonant"]


def test_codes(tmp_path: Path) -> None:
    """A row for each code, numbers counted, and every time with its spread."""
    rows = rows_of("codes", "--coordinates=[12000]", "--rounds=1", folder=tmp_path)
    assert [row[2] for row in rows] == ["0.2500", "0.5000", "0.1667", *["1.0000"] * 4]
    for row in rows:
        assert all(is_spread(row[place], row[place + 1]) for place in (3, 5, 7, 9))


def test_tradeoff(tmp_path: Path) -> None:
    """A row for each code that six workers can form; as many liars as it is made for are decoded, and not one more."""
    rows = rows_of("tradeoff", "--workers=[6]", "--coordinates=1000", "--rounds=1", folder=tmp_path)
    assert [row[0] for row in rows] == ["1, 1", "1, 4", "2, 2"]
    assert [row[1:3] for row in rows] == [["3 x", "4.000"], ["6 x", "1.000"], ["6 x", "2.000"]]
    assert [row[5] for row in rows] == ["1", "1", "2"]
    assert [row[8] for row in rows][-1] == "-"  # Bulyan needs 4 f + 3 workers


def test_coded_time(tmp_path: Path) -> None:
    """Parts of a step, links, and with a comparison's results the steps to an accuracy."""
    lines = ["method,attack,data,step,val_accuracy,seed"]
    lines += [
        f"{name},none,alike,{step},{0.5 + step / 100},1"
        for name in ("Bulyan", '"Solon(4, 2)"')
        for step in (20, 40, 60)
    ]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    small = ("--coordinates=[8000]", "--rounds=1", "--results=results.csv", "--target=0.85")
    rows = {row[0]: row[1:] for row in rows_of("coded_time", *small, folder=tmp_path)}
    assert [rows[name][3] for name in ("Solon(4, 2)", "Cyclic(4) (Draco)", "SignMajority")] == [
        "2.000",
        "4.000",
        "0.125",
    ]
    assert [rows[name][8] for name in ("Solon(4, 2)", "Bulyan", "Bulyan, as written", "SignMajority")] == [
        "40",
        "40",
        "40",
        "nan",
    ]


def test_fuzz_decoders(tmp_path: Path) -> None:
    rows = rows_of("fuzz_decoders", "--payloads=40", "--compressors=[Cast]", folder=tmp_path)
    assert [row[:2] for row in rows] == [["Cast(dtype='bfloat16')", "40"], ["Cast(dtype='float16')", "40"]]
