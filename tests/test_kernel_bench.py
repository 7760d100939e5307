"""Test the arithmetic and the files of the benchmark, the search and the GPU check."""

import csv
import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from linattn_kernels import launch, reference

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))
import bench
import counters
import gpu_check
import tune


@pytest.mark.parametrize(
    ("height", "width", "radius", "text"), [(1, 1, 1, 0), (5, 7, 2, 3), (6, 4, 3, 0), (4, 4, 9, 2)]
)
def test_useful_pairs_are_those_of_the_mask(height, width, radius, text):
    near = int(reference.window_mask(height, width, radius).sum())
    picture = height * width
    assert (
        bench.flops.useful_pairs(height, width, radius, text)
        == near + text * (text + picture) + picture * text
    )


def test_the_floor_counts_every_tensor_once():
    case = bench.Case("linear", "flux", 65536)
    assert case.tensor == 65536 * 24 * 128 * 2
    assert case.bytes == 4 * case.tensor
    assert bench.replace(case, mode="both").bytes == 11 * case.tensor
    assert case.useful == 4 * 65536 * 128 * 24 * 128


def test_a_run_writes_its_table_and_plots(tmp_path, capsys):
    arguments = [
        "mediator",
        "--shapes",
        "sdxl",
        "--tokens",
        "64",
        "--modes",
        "both",
        "--counts",
        "4",
        "--repeats",
        "1",
    ]
    assert (
        bench.main([*arguments, "--providers", "ours", "sdpa", "flex", "--out", str(tmp_path)]) == 0
    )
    with (tmp_path / "bench.csv").open() as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert float(rows["ours"]["ms"]) > 0
    assert rows["flex"]["skipped"] == "Unfit: for windows"
    assert rows["ours"]["torch"]
    assert (tmp_path / "mediator-m4-sdxl-both.png").exists()


def test_what_disagrees_with_the_definition_is_not_timed(monkeypatch):
    case = bench.Case("linear", "sdxl", 64, dtype=torch.float32)
    monkeypatch.setitem(
        bench.PROVIDERS, "ours", lambda case: lambda q, k, v: 1.01 * bench.linear_attention(q, k, v)
    )
    (row,) = bench.measure(case, ["ours"], torch.device("cpu"), 1, 1.0)
    assert "differs from the definition in its result" in row["skipped"]


def test_what_has_other_gradients_is_not_timed(monkeypatch):
    case = bench.Case("linear", "sdxl", 64, mode="backward", dtype=torch.float32)

    def shifted(q, k, v):
        return bench.linear_attention(q, k, v) + 0.1 * (v - v.detach())

    assert not bench.gate(case, "ours", torch.device("cpu"))
    monkeypatch.setitem(bench.PROVIDERS, "ours", lambda case: shifted)
    (row,) = bench.measure(case, ["ours"], torch.device("cpu"), 1, 1.0)
    assert "differs from the definition in its gradients" in row["skipped"]


@pytest.mark.parametrize(
    "case",
    [
        bench.Case("linear", "sdxl", 4096),
        bench.Case("mediator", "sdxl", 16384, count=64),
        bench.Case("window", "sdxl", 1024, radius=4),
    ],
    ids=lambda case: case.kernel,
)
def test_on_a_cpu_the_forms_that_papers_publish_are_no_faster(case):
    """Forward and backward in float32, in turns, until the best is no slower: a busy machine needs
    more of them.
    """
    case = bench.replace(case, mode="both", dtype=torch.float32)
    cpu = torch.device("cpu")
    runs = {
        name: bench.steps(case, call(case), bench.inputs(case, cpu, 1))[0]
        for name, call in (("ours", bench.ours), ("eager", bench.eager))
    }
    best = {name: bench.once(run, cpu) for name, run in runs.items()}
    for _ in range(15):
        best = {name: min(best[name], bench.once(runs[name], cpu)) for name in reversed(best)}
        if best["ours"] <= best["eager"]:
            return
    raise AssertionError(best)


def test_the_gpu_check_says_that_there_is_no_gpu(monkeypatch, capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: make gpu-check")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    assert gpu_check.main() == 1
    assert "no GPU here" in capsys.readouterr().err


def test_a_case_of_the_gpu_check_can_be_run_by_its_number():
    every = gpu_check.jobs()
    assert len(every) == len(set(every)) > 200
    number = next(job for job in every if job[:2] == (torch.float32, "mediator"))
    row = gpu_check.run_job(*number)
    assert (row["case"], row["dtype"], row["ok"]) == ("mediator d=8", "float32", True)


def test_the_gpu_check_reports_cases_that_had_no_time(monkeypatch):
    few = [(torch.float32, "mediator", number) for number in range(2)]
    monkeypatch.setattr(gpu_check, "jobs", lambda: few)
    rows = gpu_check.matrix(SimpleNamespace(workers=2, matrix=120))
    assert [(row["case"], row["ok"]) for row in rows] == [
        ("mediator d=8", True),
        ("mediator d=16", True),
    ]
    late = gpu_check.matrix(SimpleNamespace(workers=1, matrix=0))
    assert [row["ok"] for row in late] == [False, False]
    assert late[0]["error"] == "no time was left"


class Deadly:
    """A case whose process dies as it takes it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_case_that_kills_its_process_costs_no_other_case(monkeypatch):
    some = [
        (torch.float32, "mediator", 0),
        (torch.float32, Deadly(), 1),
        (torch.float32, "mediator", 1),
    ]
    monkeypatch.setattr(gpu_check, "jobs", lambda: some)
    rows = gpu_check.matrix(SimpleNamespace(workers=1, matrix=120))
    assert [row["ok"] for row in rows] == [True, False, True]
    assert "BrokenProcessPool" in rows[1]["error"]


def test_candidates_have_the_settings_of_shipped_configurations():
    """Hopper's entries are what a search replaces."""
    for search in tune.searches():
        shipped = [
            row["with"] for row in launch.table()[search.kernel] if row["capability"] == [9, 0]
        ]
        assert shipped, search.kernel
        assert all(
            any(set(config) == set(row) for row in shipped) for config in search.candidates
        ), search.name
        assert len(search.candidates) == len(
            {tuple(sorted(config.items())) for config in search.candidates}
        )


def test_a_trial_changes_the_configuration_of_one_kernel():
    q, before = torch.empty(1, 1, 1, 64), launch.config("linear_read", torch.empty(1), 64)
    with tune.tried("linear_read", {"BN": 1}):
        assert launch.config("linear_read", q, 64) == {"BN": 1}
        assert launch.config("linear_state", q, 64) != {"BN": 1}
    assert launch.config("linear_read", q, 64) == before


def test_the_counters_of_this_packages_launches_are_kept():
    names = ["ID", "Kernel Name", "Grid Size", *counters.COUNTERS.values()]
    launches = [["_read_kernel", "(11, 24, 1)", "260,256"], ["void at::copy", "(1, 1, 1)", "9"]]
    lines = [names, ["", "", ""] + ["unit"] * len(counters.COUNTERS)]
    lines += [
        ["0", *launch, *["1,000,000.5"] * (len(counters.COUNTERS) - 1)] for launch in launches
    ]
    text = ["==PROF== connected", *(",".join(f'"{cell}"' for cell in line) for line in lines)]
    (row,) = counters.parse(text)
    assert (row["kernel"], row["us"], row["memory_mb"], row["waits_gmma"]) == (
        "_read_kernel",
        260.26,
        1.0,
        1000000.5,
    )


DIMS = (1, 40, 64, 65, 72, 80, 81, 96, 97, 128, 129, 160, 161, 288)
KINDS = [("float16", "half", "any"), ("bfloat16", "half", "any"), ("float32", "single", "any")]


@pytest.mark.parametrize("kernel", launch.table())
def test_consumer_blackwell_takes_adas_configurations(kernel):
    """Hopper's ask for more shared memory than there is, and entries of (10, 0) are for other
    instructions.
    """
    for capability, kinds, dim in itertools.product([(12, 0), (12, 1)], KINDS, DIMS):
        assert launch._config(kernel, capability, kinds, dim, 12) == launch._config(
            kernel, (8, 9), kinds, dim, 12
        )


@pytest.mark.parametrize("kernel", launch.table())
def test_every_configuration_makes_a_difference(kernel, monkeypatch):
    entries = launch.table()[kernel]

    def resolved(table):
        monkeypatch.setattr(launch, "table", lambda: {kernel: table})
        for capability, kinds, dim in itertools.product(
            [(0, 0), (8, 0), (8, 9), (9, 0), (10, 0)], KINDS, DIMS
        ):
            try:
                yield launch._config.__wrapped__(kernel, capability, kinds, dim, 12)
            except ValueError:
                yield None

    complete = list(resolved(entries))
    for entry in entries:
        assert list(resolved([other for other in entries if other is not entry])) != complete, entry
