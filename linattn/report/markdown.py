"""Markdown tables: lines of cells, and a row of results as the executed notebooks show it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linattn.report.columns import COLUMNS, Column

# A mark that only this table has room for.
CROSS_COLOUR = Column(
    "cross_colour", "Colour at 2×", "% with the asked colour at twice the side", "higher", 100
)
QUALITY = (*(column for column in COLUMNS if column.section == "quality"), CROSS_COLOUR)


def table(lines: Iterable[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rule(columns: int) -> list[str]:
    """Return the line below the heads: names on the left, `columns` of numbers on the right."""
    return ["---", *["---:"] * columns]


def of_row(result: Mapping[str, Any]) -> str:
    """Return a row as a table with a line for each measure.

    The undistilled row stands beside it where there is one.
    """
    titles = {"quality": result["student"], "undistilled": "converted, not distilled"}
    sections = [name for name in titles if name in result]
    lines = [["", *(titles[name] for name in sections)], ["---"] * (len(sections) + 1)]
    for column in QUALITY:
        measures = [column.read({"quality": result[name]}) for name in sections]
        if any(measures):
            description = f"{column.title}: {column.note}"
            lines.append([description, *(_cell(column, measure) for measure in measures)])
    return table(lines)


def _cell(column: Column, measure: Mapping[str, Any] | None) -> str:
    """Write a value with its interval and number of pictures; a missing measure stays empty."""
    if not measure:
        return ""
    text = column.text(measure["value"])
    if measure["low"] is not None:
        text += f" ({column.text(measure['low'])} to {column.text(measure['high'])})"
    return text + (f", n {measure['n']}" if measure["n"] else "")
