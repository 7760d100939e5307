"""Times of one attention call at 64K tokens on a GPU, by operator, from reports/gpu/bench.csv.

Only what was timed has a number: LiT's few wide heads and CLEAR's pooled keys were not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TOKENS = 65536
DENSE = "softmax"
# The benchmark's case of an operator at the heads of a model; `{}` is the model and the mode.
CASES = {
    "clear": ("window r=16 text=512 {}", "window r=16 text=0 {}"),
    "linfusion": ("linear {}",),
    "mediator": ("mediator m=64 {}",),
}
FORMS = {
    "clear": "`clear` of radius 16 without pooled keys",
    "linfusion": "`linfusion` without its MLPs",
    "mediator": "64 mediators",
}
# A window's call may have text tokens besides, so softmax's own time is the linear case's.
DENSE_CASE = "linear {}"
PEER = "sdpa-cudnn"


@dataclass(frozen=True)
class Call:
    """Hold one operator's time and peak memory, and the time of cuDNN's softmax beside it."""

    ms: float
    memory_mb: float
    dense_ms: float | None

    @property
    def times_less(self) -> float | None:
        return self.dense_ms / self.ms if self.dense_ms else None


def at_64k(
    timings: Iterable[Mapping[str, Any]], model: str, mode: str = "forward"
) -> dict[str, Call]:
    """Return the calls at the heads of a model by operator, softmax among them."""
    timed = {(row["case"], row["provider"]): row for row in timings if not row["skipped"]}
    size = f"{model} {TOKENS} {mode}"
    calls = {}
    if dense := timed.get((DENSE_CASE.format(size), PEER)):
        calls[DENSE] = _call(dense, None)
    for operator, names in CASES.items():
        for case in (name.format(size) for name in names):
            if ours := timed.get((case, "ours")):
                calls[operator] = _call(ours, timed.get((case, PEER)))
    return calls


def _call(row: Mapping[str, Any], peer: Mapping[str, Any] | None) -> Call:
    return Call(row["ms"], float(row["memory_mb"]), peer["ms"] if peer else None)
