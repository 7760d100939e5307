"""Whole steps as a table: a column for each size, lines for the dense step, its bound and the others."""

from collections.abc import Iterable, Mapping
from typing import Any

from linattn.report.numbers import seconds


def table(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of amdahl.time_steps: {sizes, lines [(name, [cell ..]) ..]}."""
    rows = [row for row in rows if row.get("seconds")]
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


def told(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same in Markdown."""
    found = table(rows)
    if not found["sizes"]:
        return "No step was timed."
    heads = ["tokens", *(f"{size:,}" for size in found["sizes"])]
    lines = [heads, ["---", *["---:"] * len(found["sizes"])], *([name, *cells] for name, cells in found["lines"])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
