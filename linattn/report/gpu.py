"""What the kernels reach on a GPU, beside what they were meant to: reports/gpu/bench.csv, as `make gpu-check` made it.

A target is a share of the floor (the time this GPU needs to move what must be moved, or to multiply what must be
multiplied, measured in the same run), executed TFLOP/s, or milliseconds.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linattn import project

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
    wanted: float

    def met(self, value: float) -> bool:
        return value <= self.wanted if self.measure == "ms" else value >= self.wanted

    def text(self, value: float) -> str:
        return MEASURES[self.measure].format(value)


FLOOR, RATE, TIME = MEASURES
TARGETS = (
    Target("linear flux 65536 forward", FLOOR, 0.80),
    Target("linear flux 262144 forward", FLOOR, 0.80),
    Target("linear flux 1048576 forward", FLOOR, 0.80),
    Target("linear flux 16384 forward", FLOOR, 0.72),
    Target("linear flux 4096 forward", FLOOR, 0.58),
    Target("linear flux 1024 forward", TIME, 0.012),
    Target("linear flux 65536 backward", FLOOR, 0.75),
    Target("linear sdxl 65536 forward", FLOOR, 0.78),
    Target("linear sdxl 262144 forward", FLOOR, 0.78),
    Target("linear sdxl 1048576 forward", FLOOR, 0.78),
    Target("linear sdxl 65536 backward", FLOOR, 0.75),
    Target("linear dit 65536 forward", FLOOR, 0.75),
    Target("window r=8 text=512 flux 65536 forward", RATE, 450),
    Target("window r=16 text=512 flux 65536 forward", RATE, 450),
    Target("window r=32 text=512 flux 65536 forward", RATE, 450),
    Target("window r=16 text=512 flux 262144 forward", RATE, 450),
    Target("window r=16 text=512 flux 1048576 forward", RATE, 450),
    Target("window r=16 text=0 dit 65536 forward", RATE, 400),
    Target("window r=16 text=0 sdxl 65536 forward", RATE, 350),
    Target("window r=16 text=512 flux 65536 backward", TIME, 20),
    Target("mediator m=64 dit 4096 forward", TIME, 0.022),
    Target("mediator m=64 dit 65536 forward", FLOOR, 0.75),
    Target("mediator m=196 dit 65536 forward", TIME, 0.33),
    Target("mediator m=1024 dit 65536 forward", TIME, 1.4),
)


def read(path: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a run, none where there is no file: numbers as such, nothing for what was not timed."""
    path = path or project.ROOT / "reports" / "gpu" / "bench.csv"
    if not path.exists():
        return []
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [row | {name: float(row[name]) for name in MEASURES if row.get(name)} for row in rows]


def told(rows: list[dict[str, Any]]) -> str:
    """A run's table, or how to make one."""
    return table(rows) if rows else "No run on a GPU is committed yet: `make gpu-check` makes one."


def pictures() -> list[Path]:
    return sorted((project.ROOT / "reports" / "gpu").glob("*.png"))


def table(rows: list[dict[str, Any]]) -> str:
    """Every target and what was reached, with how many times its peers took in the same run."""
    timed = {(row["case"], row["provider"]): row for row in rows if not row["skipped"]}
    heads = ["kernel, model, tokens", "ms", "reached", "target", *(f"{name} takes" for name in PEERS)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for target in TARGETS:
        ours = timed.get((target.case, "ours"))
        if ours is None:
            lines.append([target.case, "–", "not measured", target.text(target.wanted), *["–"] * len(PEERS)])
            continue
        value = ours[target.measure]
        reached = f"**{target.text(value)}**" if target.met(value) else target.text(value)
        peers = [timed.get((target.case, name)) for name in PEERS.values()]
        times = [f"{peer['ms'] / ours['ms']:.3g}x" if peer else "–" for peer in peers]
        lines.append([target.case, f"{ours['ms']:.3g}", reached, target.text(target.wanted), *times])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + circumstances(rows)


def circumstances(rows: list[dict[str, Any]]) -> str:
    first, timed = rows[0], [row for row in rows if not row["skipped"]]
    counts = [int(row["repeats"]) for row in timed if row["provider"] == "ours"]
    theirs = [int(row["repeats"]) for row in timed if row["provider"] != "ours"]
    if not counts:
        return f"Nothing could be timed on {first['hardware']}."
    versions = f"torch {first['torch']}, triton {first['triton']}, Python {first['python']}"
    peers = f", {min(theirs)} to {max(theirs)} of the peers" if theirs else ""
    return (
        f"Medians of {min(counts)} to {max(counts)} calls{peers}, in one run, bf16, bold where the target is met: "
        f"{first['hardware']}, {versions}, commit {first['commit']}, {first['date']}."
    )
