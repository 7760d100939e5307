"""What bounds each kernel: `python kernels/counters.py --out reports/gpu`, where Nsight Compute
(ncu) is installed.

ncu runs this file again, which calls every function once at 64K tokens; of what it counts a row a
launch is kept: its time, the bytes that memory moved, how busy memory and the instruction issue
were, how many warps were there, and what they waited for.
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
    **{
        f"waits_{name}": STALL.format(name)
        for name in ("barrier", "long_scoreboard", "wait", "gmma")
    },
}
SCALE = {"us": 1e-3, "memory_mb": 1e-6, "l2_mb": 1e-6}  # ncu counts nanoseconds and bytes


def workload() -> None:
    def tensors(tokens: int, heads: int, dim: int) -> list[torch.Tensor]:
        return list(
            torch.randn(1, tokens, 3, heads, dim, device="cuda", dtype=torch.bfloat16).unbind(2)
        )

    q, k, v = tensors(512 + 256 * 256, 24, 128)
    linear_attention(q, k, v)
    window_attention(q, k, v, height=256, width=256, radius=16, text=512)
    q, k, v = tensors(256 * 256, 16, 72)
    mediator_attention(q, k, v, q[:, ::1024].contiguous())
    window_attention(q, k, v, height=256, width=256, radius=16)
    leaves = [each.requires_grad_() for each in tensors(256 * 256, 24, 128)]
    linear_attention(*leaves).sum().backward()
    torch.cuda.synchronize()


def rows(lines: Iterable[str]) -> list[dict[str, str | float]]:
    """Of ncu's raw table: the launches of this package, the counters above."""
    head, _, *launches = csv.reader(line for line in lines if line.startswith('"'))
    found = []
    for launch in launches:
        values = dict(zip(head, launch, strict=True))
        if values["Kernel Name"].startswith("_"):
            counted = {name: values[counter].replace(",", "") for name, counter in COUNTERS.items()}
            numbers = {
                name: round(float(value) * SCALE.get(name, 1), 2) for name, value in counted.items()
            }
            found.append({"kernel": values["Kernel Name"], "grid": values["Grid Size"], **numbers})
    return found


def write(found: list[dict[str, str | float]], known: dict[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "counters.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*found[0], *known])
        writer.writeheader()
        writer.writerows({**row, **known} for row in found)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument("--workload", action="store_true", help="what ncu runs")
    options = parser.parse_args()
    if options.workload:
        workload()
        return 0
    command = [
        "ncu",
        "--clock-control",
        "none",
        "-k",
        "regex:_kernel",
        "--metrics",
        ",".join(COUNTERS.values()),
    ]
    command += ["--csv", "--page", "raw", sys.executable, __file__, "--workload"]
    found = rows(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    )
    write(found, bench.facts(torch.device("cuda")), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
