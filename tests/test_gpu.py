"""Test the kernels' table: a row for each target, from measured numbers only."""

import csv
import sys
from pathlib import Path

import pytest

from linattn.report import gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
import gpu_check

FACTS = {
    "date": "2026-11-26",
    "commit": "0123456789ab",
    "hardware": "a GPU",
    "torch": "1",
    "triton": "2",
    "python": "3",
}


def timed(case, provider="ours", **values):
    return {"case": case, "provider": provider, "skipped": "", "repeats": "15", **FACTS, **values}


def written(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    return gpu.read(path)


def cells(text):
    return {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
        for line in text.splitlines()
        if "|" in line
    }


@pytest.fixture
def rows(tmp_path):
    return written(
        tmp_path / "bench.csv",
        [
            timed("linear flux 65536 forward", ms=0.5, of_floor=0.79),
            timed("linear flux 65536 forward", "sdpa-cudnn", ms=80, of_floor=0.005),
            timed("linear flux 65536 forward", "fla") | {"skipped": "not installed", "repeats": ""},
            timed("linear sdxl 65536 forward", ms=0.1, of_floor=0.78),
            timed(
                "window r=16 text=512 flux 65536 forward", ms=4, of_floor=0.4, executed_tflops=520
            ),
            timed("window r=16 text=512 flux 65536 backward", ms=20, of_floor=0.2),
        ],
    )


def test_every_target_has_a_row_and_what_nobody_measured_says_so(rows):
    by_case = cells(gpu.table(rows))
    assert len(by_case) == len(gpu.targets()) + 2
    assert by_case["mediator m=64 dit 4096 forward"][1:4] == ["–", "not measured", "0.022 ms"]


def test_a_target_is_met_by_reaching_it_and_not_by_rounding(rows):
    by_case = cells(gpu.table(rows))
    assert by_case["linear flux 65536 forward"][1:5] == [
        "0.5",
        "79% of floor",
        "80% of floor",
        "160x",
    ]
    assert by_case["linear sdxl 65536 forward"][2] == "**78% of floor**"
    assert by_case["window r=16 text=512 flux 65536 forward"][2] == "**520 TFLOP/s**"
    assert by_case["window r=16 text=512 flux 65536 backward"][2] == "**20 ms**"


def test_the_table_names_the_run(rows):
    assert "a GPU, torch 1, triton 2, Python 3, commit 0123456789ab, 2026-11-26" in gpu.table(rows)


def test_a_missing_run_gives_no_rows(tmp_path):
    assert gpu.read(tmp_path / "bench.csv") == []


def test_a_target_is_a_case_that_the_check_times():
    """A misspelt target would be shown as not measured for ever."""
    planned = {case.name for case, names in gpu_check.plans() if "ours" in names}
    assert {target.case for target in gpu.targets()} <= planned


def test_a_run_that_timed_nothing_says_so(tmp_path):
    rows = written(
        tmp_path / "bench.csv",
        [timed("linear flux 65536 forward") | {"skipped": "no memory", "repeats": ""}],
    )
    assert gpu.table(rows).endswith("Nothing could be timed on a GPU.")
