"""The kernels' times on a GPU beside their targets, from reports/gpu/bench.csv, which `make
gpu-check` writes.

A target is a share of the floor, executed TFLOP/s, or milliseconds. The floor is the time this GPU
needs to move all bytes that must move, or to do all multiplications, measured in the same run.
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
        """Say whether a measured value meets the target."""
        return value <= self.wanted if self.measure == "ms" else value >= self.wanted

    def text(self, value: float) -> str:
        """Write a value in the target's unit."""
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
    """Read the rows of a run, none where there is no file.

    Measures are numbers; a measure that was not taken stays an empty text.
    """
    path = path or project.ROOT / "reports" / "gpu" / "bench.csv"
    if not path.exists():
        return []
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [row | {name: float(row[name]) for name in MEASURES if row.get(name)} for row in rows]


def told(rows: list[dict[str, Any]]) -> str:
    """Return a run's table in Markdown, or say how to make one."""
    return table(rows) if rows else "No run on a GPU is committed yet: `make gpu-check` makes one."


def pictures() -> list[Path]:
    """Return the paths of the committed figures of GPU runs."""
    return sorted((project.ROOT / "reports" / "gpu").glob("*.png"))


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of every target, the value reached, and the peers' times relative to
    ours.
    """
    timed = {(row["case"], row["provider"]): row for row in rows if not row["skipped"]}
    heads = [
        "kernel, model, tokens",
        "ms",
        "reached",
        "target",
        *(f"{name} takes" for name in PEERS),
    ]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for target in TARGETS:
        ours = timed.get((target.case, "ours"))
        if ours is None:
            lines.append(
                [target.case, "–", "not measured", target.text(target.wanted), *["–"] * len(PEERS)]
            )
            continue
        value = ours[target.measure]
        reached = f"**{target.text(value)}**" if target.met(value) else target.text(value)
        peers = [timed.get((target.case, name)) for name in PEERS.values()]
        times = [f"{peer['ms'] / ours['ms']:.3g}x" if peer else "–" for peer in peers]
        lines.append(
            [target.case, f"{ours['ms']:.3g}", reached, target.text(target.wanted), *times]
        )
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + circumstances(rows)
    )


def circumstances(rows: list[dict[str, Any]]) -> str:
    """Say how many calls were timed, on which GPU and with which versions."""
    first, timed = rows[0], [row for row in rows if not row["skipped"]]
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
