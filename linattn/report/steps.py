"""Times of whole steps as a table with a column for each size.

The lines are the dense step, attention's share of it, the bound that follows, and the operators.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report import markdown
from linattn.report.numbers import seconds


def table(timings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows of amdahl.time_steps as {sizes, lines [(name, [cell ..]) ..]}."""
    timed = [row for row in timings if row.get("seconds")]
    sizes = sorted({row["tokens"] for row in timed})
    cells: dict[str, dict[int, str]] = {}  # by line and size
    for row in timed:
        time, tokens = seconds(row["seconds"]), row["tokens"]
        if row["operator"] == "dense":
            cells.setdefault("dense", {})[tokens] = time
            cells.setdefault("attention's share of it", {})[tokens] = f"{100 * row['share']:.0f} %"
            bound = "no bound" if row["most"] is None else f"{row['most']:.2f}×"
            cells.setdefault("so at most", {})[tokens] = bound
        else:
            cells.setdefault(row["operator"], {})[tokens] = f"{row['ratio']:.2f}× ({time})"
    lines = []
    for name, by_size in cells.items():
        lines.append((name, [by_size.get(size, "") for size in sizes]))
    return {"sizes": sizes, "lines": lines}


def in_markdown(timings: Iterable[Mapping[str, Any]]) -> str:
    """Return the same table in Markdown."""
    steps = table(timings)
    sizes = steps["sizes"]
    if not sizes:
        return "No step was timed."
    heads = ["tokens", *(f"{size:,}" for size in sizes)]
    lines = [[name, *cells] for name, cells in steps["lines"]]
    return markdown.table([heads, markdown.rule(len(sizes)), *lines])
