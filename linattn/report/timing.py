"""Times of one attention call and of whole steps, as the benchmark left them."""

from typing import Any

from linattn.figures import seconds
from linattn.report.data import Data


def timed(data: Data) -> list[dict[str, Any]]:
    return [row for row in data.benchmark.get("rows") or [] if row.get("seconds")]


def baseline(data: Data) -> str:
    """The dense attention everything is timed against, by its name."""
    named = (row.get("baseline") for row in data.benchmark.get("rows") or [])
    return data.benchmark.get("baseline") or next((name for name in named if name), "softmax")


def steps(data: Data) -> dict[str, Any]:
    """Whole steps as a table: a column for each size; lines for the dense step, its bound and the others."""
    rows = [row for row in data.benchmark.get("steps") or [] if row.get("seconds")]
    sizes = sorted({row["tokens"] for row in rows})
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        time, tokens = seconds(row["seconds"]), row["tokens"]
        if row["operator"] == "dense":
            lines.setdefault("dense", {})[tokens] = time
            lines.setdefault("attention's share of it", {})[tokens] = f"{100 * row['share']:.0f} %"
            bound = "no bound" if row["most"] is None else f"{row['most']:.2f}×"
            lines.setdefault("so at most", {})[tokens] = bound
        else:
            lines.setdefault(row["operator"], {})[tokens] = f"{row['ratio']:.2f}× ({time})"
    return {"sizes": sizes, "lines": [(name, [cells.get(size, "") for size in sizes]) for name, cells in lines.items()]}
