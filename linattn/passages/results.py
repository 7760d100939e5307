"""The tables of docs/results.md: two for every teacher, so that none is wider than a page."""

from collections.abc import Mapping, Sequence

from linattn.report import budget, markdown
from linattn.report.circumstances import all_sizes
from linattn.report.columns import COLUMNS, Column, measure
from linattn.report.data import Report
from linattn.report.tables import Cell, Group, Row, Table, of_all

# How near a row is to its teacher, and what it costs; what the judge marks is the other table.
NEAR = ("error", "psnr", "kid_teacher", "eye_distance", "eye_kid", "core_macs", "added")
UNDISTILLED = "Error undistilled"
NONE = (
    "No run is committed yet: `make repro` makes one, `make publish` commits it, and "
    "`python -m linattn.readme` puts its tables here."
)


def tables(report: Report) -> str:
    """Return the heading and the two tables of every teacher."""
    if not report.results:
        return NONE
    full = of_all(report)
    return "\n\n".join(_of_teacher(report, full, group) for group in full.groups)


def _of_teacher(report: Report, full: Table, group: Group) -> str:
    heading = f"### {group.heading}\n\nIt draws from {group.note}."
    if group.waiting:
        return f"{heading} No results yet: {group.waiting}."
    near = [column for column in full.columns if column.key in NEAR]
    marks = [column for column in full.columns if column.key not in NEAR]
    before = {row.name: _undistilled(report, row.name) for row in group.rows}
    distance = _table(full.columns, near, group.rows, {UNDISTILLED: before})
    judged = _table(full.columns, marks, group.rows)
    return "\n\n".join([heading, distance, judged])


def _table(
    columns: Sequence[Column],
    chosen: Sequence[Column],
    lines: Sequence[Row],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return the chosen columns as Markdown, then those of `more`, {title: {row: text}}.

    Columns and rows without a number are left out.
    """
    places = [columns.index(column) for column in chosen]
    used = [place for place in places if any(_measured(row, [place]) for row in lines)]
    others = more or {}
    titles = ["", *(columns[place].title for place in used), *others]
    written = [titles, markdown.rule(len(titles) - 1)]
    for row in lines:
        if row.failure or _measured(row, used):
            ends = [of_row[row.name] for of_row in others.values()]
            written.append([row.name, *_cells(row, used), *ends])
    return markdown.table(written)


def _measured(row: Row, places: Sequence[int]) -> bool:
    """Say whether a row has a number in any of these columns."""
    return not row.failure and any(row.cells[place].text != "–" for place in places)


def _cells(row: Row, places: Sequence[int]) -> list[str]:
    if row.failure:
        return [f"failed: {row.failure}", *[""] * (len(places) - 1)]
    return [_cell(row.cells[place]) for place in places]


def _cell(cell: Cell) -> str:
    """Write a value with its interval below it, which keeps the column narrow."""
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text}<br>({cell.interval})" if cell.interval else text


def _undistilled(report: Report, name: str) -> str:
    error = next(column for column in COLUMNS if column.key == "error")
    before = measure(report.results.get(name, {}), "error", "undistilled")
    return error.text(before["value"]) if before else ""


def legend(report: Report) -> str:
    """Say what each column means."""
    meanings = [f"- {column.title}: {column.note}." for column in of_all(report).columns]
    undistilled = f"- {UNDISTILLED}: the error of the student as converted, before any training."
    best = "Brackets hold 95 % intervals; bold is the best method of each teacher."
    return "\n".join([*meanings, undistilled]) + f"\n\n{best}"


def circumstances(report: Report) -> str:
    """Say how many pictures, which seeds and which machine the numbers come from."""
    training_seeds = {tuple(result["seeds"]) for result in report.results.values()}
    sizes = [teacher.teacher.get("pictures") for teacher in report.parts.values()]
    evaluation_seeds = sorted({str(size["seed"]) for size in sizes if size})
    words = [
        f"Profile {report.profile}: {' '.join(all_sizes(report)).rstrip('.')}",
        f"evaluation seed {', '.join(evaluation_seeds) or 'unknown'}",
        f"training seeds {', '.join(str(list(seeds)) for seeds in sorted(training_seeds))}",
    ]
    if machine := budget.machine(report):
        words.append(machine)
    return "; ".join(words) + "."


def section(report: Report) -> str:
    """Return the tables, the meaning of their columns and the circumstances."""
    if not report.results:
        return NONE
    return "\n\n".join([tables(report), legend(report), circumstances(report)])
