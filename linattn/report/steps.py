"""Times of whole steps as a table: a column for each size, lines for the dense step, its bound and
the operators.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report.numbers import seconds


def table(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows of amdahl.time_steps as {sizes, lines [(name, [cell ..]) ..]}."""
    rows = [row for row in rows if row.get("seconds")]
    sizes = sorted({row["tokens"] for row in rows})
    cells: dict[str, dict[int, str]] = {}  # by line and size
    for row in rows:
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


def told(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the same table in Markdown."""
    steps = table(rows)
    sizes = steps["sizes"]
    if not sizes:
        return "No step was timed."
    heads = ["tokens", *(f"{size:,}" for size in sizes)]
    lines = [heads, ["---", *["---:"] * len(sizes)]]
    lines += [[name, *cells] for name, cells in steps["lines"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
