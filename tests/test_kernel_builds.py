"""Compile the kernels for GPUs that are not here: no spills, tensor cores, room in shared memory.

Each list is compiled in a process of its own, since this one interprets Triton.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[1]
PRODUCTS = ("_sum_kernel", "_merge_kernel", "_delta_kernel")  # all others multiply matrices


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Return Triton's cache folder for all lists, which share 28 kernels."""
    return tmp_path_factory.mktemp("cache")


def builds(
    cache: Path, folder: Path, *arguments: str, code: str | None = None
) -> tuple[list[dict], subprocess.CompletedProcess]:
    out = folder / "builds.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = ["-c", code] if code else [str(ROOT / "kernels" / "builds.py")]
    done = subprocess.run(
        [sys.executable, *command, *arguments, "--json", str(out)],
        env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT,
    )  # fmt: skip
    assert out.exists(), done.stderr[-2000:]
    return json.loads(out.read_text()), done


WIDE = ("--dims", "72", "104", "128", "160", "288", "--dtypes", "bfloat16", "--plain")
HOPPER = {
    "bfloat16 and branches": ("--dims", "40", "64", "--dtypes", "bfloat16"),
    "bfloat16 wide": WIDE,
    "float16": ("--dims", "64", "72", "96", "128", "288", "--dtypes", "float16", "--plain"),
    "float32": ("--dims", "64", "128", "160", "288", "--dtypes", "float32", "--plain"),
}
OTHERS = {
    name: ("--capability", name, "--dims", "64", "128", "288", "--dtypes", "bfloat16", "--plain")
    for name in ("10.0", "12.0", "8.0", "8.9")
}
# After an edit of a kernel LINATTN_BUILDS=all builds all; otherwise a width of one part, of
# several and the widest, and beside Hopper the oldest and the one with the least shared memory.
EVERYTHING = os.environ.get("LINATTN_BUILDS") == "all"
CAPABILITIES = tuple(OTHERS) if EVERYTHING else ("12.0", "8.0")
FEW = {
    "bfloat16 and branches": ("64",),
    "bfloat16 wide": ("104", "288"),
    "float16": ("128",),
    "float32": ("160",),
    **dict.fromkeys(OTHERS, ("64", "288")),
}


def chosen(name: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments with the widths that are built here."""
    if EVERYTHING or name not in FEW:
        return arguments
    return tuple(word for word in arguments if not word.isdecimal() or word in FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("which", HOPPER)
def test_every_configuration_for_hopper(cache, tmp_path, which):
    rows, done = builds(cache, tmp_path, *chosen(which, HOPPER[which]))
    assert done.returncode == 0, [row for row in rows if row["spilled"]]
    half = [row for row in rows if which != "float32" and row["kernel"] not in PRODUCTS]
    assert all(row["wgmma"] + row["mma"] for row in half), "a kernel without tensor cores"
    # A head of one part, as most models have, is loaded asynchronously and multiplied by a warp
    # group (wgmma).
    narrow = [row for row in half if row["case"].split()[1] in ("64", "128")]
    assert all(row["wgmma"] and row["copies"] for row in narrow), [
        (row["case"], row["kernel"]) for row in narrow if not (row["wgmma"] and row["copies"])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_fits_other_architectures(cache, tmp_path, capability):
    """No kernel may need too much shared memory, and none at heads of 64 may spill."""
    rows, done = builds(cache, tmp_path, *chosen(capability, OTHERS[capability]))
    assert done.returncode == any(row["faults"] for row in rows)
    assert not [row for row in rows if any("shared memory" in fault for fault in row["faults"])]
    assert not [
        row for row in rows if row["spilled"] > (0 if row["case"].split()[1] == "64" else 512)
    ]


SPILLING = """
import sys
sys.argv[0] = "builds.py"
sys.path.insert(0, "kernels")
import builds
from linattn_kernels import launch

for row in launch.table()["softmax_attend"]:
    row["with"] |= {"num_warps": 1, "BM": 64, "BN": 32}
sys.exit(builds.main())
"""


def test_a_configuration_that_spills_is_refused(cache, tmp_path):
    options = ("--dims", "128", "--dtypes", "bfloat16", "--only", "mediator")
    rows, done = builds(cache, tmp_path, *options, code=SPILLING)
    assert done.returncode == 1
    assert any(row["spilled"] for row in rows if row["kernel"] == "_attend_kernel")
    assert "bytes spilled" in done.stdout


BEFOREHAND = """
import itertools, sys
sys.path.insert(0, "kernels")
import torch, gpu_check

gpu_check.DTYPES, plans = (torch.bfloat16,), list(gpu_check.plans())
cases = gpu_check.linear_cases
gpu_check.CASES = {"linear": lambda dtype: itertools.islice(cases(dtype), 1)}
gpu_check.plans = lambda: plans[:1]
sys.argv = ["gpu_check.py", "--compile", "9.0"]
sys.exit(gpu_check.main())
"""


def test_the_kernels_of_the_gpu_check_can_be_built_without_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", BEFOREHAND]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cubins = list(tmp_path.rglob("*.cubin"))
    assert f"{len(cubins)} kernels" in done.stdout
    assert {path.stem for path in cubins} >= {
        "_state_kernel",
        "_read_kernel",
        "_spread_kernel",
        "_forward_kernel",
    }


def test_a_table_is_compared_with_an_earlier_one(cache, tmp_path):
    """A renamed kernel is the same kernel; any other number, or other instructions, is told."""
    case = ("--dims", "64", "--dtypes", "bfloat16", "--only", "mediator", "--plain")
    rows, done = builds(cache, tmp_path, *case)
    assert done.returncode == 0
    before = tmp_path / "before.json"
    before.write_text(json.dumps([{**row, "kernel": "_renamed_kernel"} for row in rows]))
    _, done = builds(cache, tmp_path, *case, "--compare", str(before))
    assert done.returncode == 0
    assert f"all {len(rows)} kernels are the same" in done.stdout
    rows[0] |= {"registers": 1, "code": "another"}
    before.write_text(json.dumps(rows))
    _, done = builds(cache, tmp_path, *case, "--compare", str(before))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if " on 9.0: " in line]
    assert "registers 1 -> " in line
    assert "code another -> " in line
