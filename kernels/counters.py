"""Count with Nsight Compute what bounds each kernel: `python kernels/counters.py`.

ncu runs this file again, which calls every function once at 64K tokens. One row is kept for each
launch: its time, the bytes that memory moved, how busy memory and the instruction issue were, how
many warps were resident, and what they waited for.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import bench

from linattn_kernels import linear_attention, mediator_attention, window_attention

STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "memory_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory_mb": "dram__bytes.sum",
    "l2_mb": "lts__t_bytes.sum",
    "issue_percent": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "waits_barrier": STALL.format("barrier"),
    "waits_long_scoreboard": STALL.format("long_scoreboard"),
    "waits_wait": STALL.format("wait"),
    "waits_gmma": STALL.format("gmma"),
}
SCALE = {"us": 1e-3, "memory_mb": 1e-6, "l2_mb": 1e-6}  # ncu counts nanoseconds and bytes


def workload() -> None:
    """Call each function once."""

    def tensors(tokens: int, heads: int, dim: int) -> list[torch.Tensor]:
        shape = (1, tokens, 3, heads, dim)
        return list(torch.randn(shape, device="cuda", dtype=torch.bfloat16).unbind(2))

    q, k, v = tensors(512 + 256 * 256, 24, 128)
    linear_attention(q, k, v)
    window_attention(q, k, v, height=256, width=256, radius=16, text=512)
    q, k, v = tensors(256 * 256, 16, 72)
    mediator_attention(q, k, v, q[:, ::1024].contiguous())
    window_attention(q, k, v, height=256, width=256, radius=16)
    leaves = [tensor.requires_grad_() for tensor in tensors(256 * 256, 24, 128)]
    linear_attention(*leaves).sum().backward()
    torch.cuda.synchronize()


def parse(lines: Iterable[str]) -> list[dict[str, str | float]]:
    """Return the counters of this package's launches from ncu's raw table."""
    names, _, *launches = csv.reader(line for line in lines if line.startswith('"'))
    entries = []
    for launch in launches:
        values = dict(zip(names, launch, strict=True))
        if not values["Kernel Name"].startswith("_"):
            continue
        entry: dict[str, str | float] = {
            "kernel": values["Kernel Name"],
            "grid": values["Grid Size"],
        }
        for name, counter in COUNTERS.items():
            value = float(values[counter].replace(",", ""))
            entry[name] = round(value * SCALE.get(name, 1), 2)
        entries.append(entry)
    return entries


def write(entries: list[dict[str, str | float]], run_facts: dict[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "counters.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*entries[0], *run_facts])
        writer.writeheader()
        writer.writerows({**entry, **run_facts} for entry in entries)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument("--workload", action="store_true", help="what ncu runs")
    options = parser.parse_args()
    if options.workload:
        workload()
        return 0
    command = ["ncu", "--clock-control", "none", "-k", "regex:_kernel"]
    command += ["--metrics", ",".join(COUNTERS.values()), "--csv", "--page", "raw"]
    command += [sys.executable, __file__, "--workload"]
    ncu = subprocess.run(command, capture_output=True, text=True, check=True)
    entries = parse(ncu.stdout.splitlines())
    write(entries, bench.facts(torch.device("cuda")), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
