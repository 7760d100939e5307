"""The kernels' times on a GPU beside their targets, from reports/gpu/bench.csv, which `make
gpu-check` writes.

A target is a share of the floor, executed TFLOP/s, or milliseconds; all targets stand in
kernels/targets.json. The floor is the time this GPU
needs to move all bytes that must move, or to do all multiplications, measured in the same run.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linattn import project
from linattn.report import markdown

MEASURES = {"of_floor": "{:.0%} of floor", "executed_tflops": "{:.0f} TFLOP/s", "ms": "{:.3g} ms"}
PEERS = {
    "cuDNN": "sdpa-cudnn",
    "flash": "sdpa-flash",
    "FlexAttention": "flex",
    "PyTorch": "eager",
    "compiled": "compiled",
}


@dataclass(frozen=True)
class Target:
    case: str
    measure: str
    target: float

    def met(self, value: float) -> bool:
        """Say whether a measured value meets the target."""
        return value <= self.target if self.measure == "ms" else value >= self.target

    def text(self, value: float) -> str:
        """Write a value in the target's unit."""
        return MEASURES[self.measure].format(value)


def targets(path: Path | None = None) -> list[Target]:
    """Read the targets, which stand in kernels/targets.json beside the plans of the benchmark."""
    path = path or project.ROOT / "kernels" / "targets.json"
    return [Target(**entry) for entry in json.loads(path.read_text())]


def read(path: Path | None = None) -> list[dict[str, Any]]:
    """Read the rows of a run, none where there is no file.

    Measures are numbers; a measure that was not taken stays an empty text.
    """
    path = path or project.ROOT / "reports" / "gpu" / "bench.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [row | _numbers(row) for row in csv.DictReader(file)]


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in MEASURES if row.get(name)}


def in_markdown(timings: list[dict[str, Any]]) -> str:
    """Return a run's table in Markdown, or say how to make one."""
    return (
        table(timings)
        if timings
        else "No run on a GPU is committed yet: `make gpu-check` makes one."
    )


def pictures() -> list[Path]:
    """Return the paths of the committed figures of GPU runs."""
    return sorted((project.ROOT / "reports" / "gpu").glob("*.png"))


def table(timings: list[dict[str, Any]]) -> str:
    """Return a Markdown table of targets, the values reached, and the peers' times over ours."""
    timed = {(row["case"], row["provider"]): row for row in timings if not row["skipped"]}
    peer_heads = [f"{name} takes" for name in PEERS]
    heads = ["kernel, model, tokens", "ms", "reached", "target", *peer_heads]
    lines = [_line(target, timed) for target in targets()]
    body = markdown.table([heads, markdown.rule(len(heads) - 1), *lines])
    return f"{body}\n\n{circumstances(timings)}"


def _line(target: Target, timed: Mapping[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Return the cells of one target; `timed` maps (case, provider) to the benchmark's row."""
    wanted, ours = target.text(target.target), timed.get((target.case, "ours"))
    if ours is None:
        return [target.case, "–", "not measured", wanted, *["–"] * len(PEERS)]
    value = ours[target.measure]
    reached = f"**{target.text(value)}**" if target.met(value) else target.text(value)
    peers = [timed.get((target.case, provider)) for provider in PEERS.values()]
    ratios = [f"{peer['ms'] / ours['ms']:.3g}x" if peer else "–" for peer in peers]
    return [target.case, f"{ours['ms']:.3g}", reached, wanted, *ratios]


def circumstances(timings: list[dict[str, Any]]) -> str:
    """Say how many calls were timed, on which GPU and with which versions."""
    first, timed = timings[0], [row for row in timings if not row["skipped"]]
    our_calls = [int(row["repeats"]) for row in timed if row["provider"] == "ours"]
    peer_calls = [int(row["repeats"]) for row in timed if row["provider"] != "ours"]
    if not our_calls:
        return f"Nothing could be timed on {first['hardware']}."
    versions = f"torch {first['torch']}, triton {first['triton']}, Python {first['python']}"
    peers = f", {min(peer_calls)} to {max(peer_calls)} of the peers" if peer_calls else ""
    ours = f"{min(our_calls)} to {max(our_calls)}"
    return (
        f"Medians of {ours} calls{peers}, in one run, bf16, bold where the target is met: "
        f"{first['hardware']}, {versions}, commit {first['commit']}, {first['date']}."
    )
