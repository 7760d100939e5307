"""Compare this machine's run with the committed one: the same rows, figure by figure.

Processors differ in the order of their sums, so a training ends with other bits, and its figures
move a little. A figure agrees where each run's value lies in the other's 95 % interval, or where
both print alike: untrained softmax has an error of 1e-13 and an interval as narrow. A figure
without an interval, such as a cost, must be equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linattn.report.columns import COLUMNS, Column
from linattn.report.data import Data, Measured, Report, Result
from linattn.report.tables import Cell, cell
from linattn.report.words import are, listed, number

Measure = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """Hold one measure of one row, from here and from the committed run."""

    here: Cell
    committed: Cell
    agrees: bool


@dataclass(frozen=True)
class Row:
    name: str
    figures: tuple[Figure | None, ...]  # one for each column; None where a run has no such figure
    same: bool  # True if both runs have the same number in every figure

    @property
    def agrees(self) -> bool:
        return all(figure.agrees for figure in self.figures if figure)


@dataclass(frozen=True)
class Agreement:
    """Hold all rows of one teacher that both runs have."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def figures(self) -> list[Figure]:
        return [figure for row in self.rows for figure in row.figures if figure]


def of_teacher(data: Data) -> Agreement:
    """Compare all rows of a teacher that both runs have."""
    here, committed = rows(data.here), rows(data.committed)
    pairs = {name: (here[name], committed[name]) for name in here if name in committed}
    columns = tuple(
        column
        for column in COLUMNS
        if any(column.read(a) and column.read(b) for a, b in pairs.values())
    )
    return Agreement(columns, tuple(_row(name, columns, *pair) for name, pair in pairs.items()))


def rows(run: Measured) -> dict[str, Result]:
    """Return the results of a teacher's table by row name, with the rows before distillation."""
    results = {
        "teacher": run.teacher,
        "teacher, fewer steps": {"quality": run.teacher.get("quick")},
        "chance": run.chance,
        **run.students,
    }
    for name, student in run.students.items():
        results[f"{name}, not distilled"] = {"quality": student.get("undistilled")}
    return {name: result for name, result in results.items() if result.get("quality")}


def _row(name: str, columns: Sequence[Column], here: Result, committed: Result) -> Row:
    figures, same = [], True
    for column in columns:
        ours, theirs = column.read(here), column.read(committed)
        if ours and theirs:
            figures.append(_figure(column, ours, theirs))
            same = same and ours["value"] == theirs["value"]
        else:
            figures.append(None)
    return Row(name, tuple(figures), same)


def _figure(column: Column, here: Measure, committed: Measure) -> Figure:
    return Figure(cell(column, here), cell(column, committed), agree(column, here, committed))


def agree(column: Column, here: Measure, committed: Measure) -> bool:
    """Say whether two measures agree."""
    ours, theirs = here["value"], committed["value"]
    if None in (here.get("low"), committed.get("low")):
        return ours == theirs
    within = here["low"] <= theirs <= here["high"] and committed["low"] <= ours <= committed["high"]
    return within or column.text(ours) == column.text(theirs)


def summary(data: Data, agreement: Agreement) -> str:
    """Say in one sentence for one teacher how many figures agree, which rows do not, and which were
    not compared.
    """
    if data.all_published:
        return f"{data.name} was not run here: its rows are the committed run's."
    kept = [name for name in ("teacher", *data.students) if name in data.published]
    lost = [
        name
        for name in rows(data.committed)
        if name not in rows(data.here) and "not distilled" not in name
    ]
    apart = [row.name for row in agreement.rows if not row.agrees]
    parts = [
        _counts(agreement),
        f"apart {are(apart)} {listed(apart)}" if apart else "",
        f"not run here {are(kept)} {listed(kept)}" if kept else "",
        f"committed and without a result here {are(lost)} {listed(lost)}" if lost else "",
    ]
    said = "; ".join(filter(None, parts))
    return f"{data.name}: {said}." if said else ""


def _counts(agreement: Agreement) -> str:
    if not agreement.rows:
        return ""
    figures, same = (
        [figure.agrees for figure in agreement.figures],
        sum(row.same for row in agreement.rows),
    )
    return (
        f"{sum(figures)} of {number(len(figures), 'figure')} agree, in "
        f"{number(len(agreement.rows), 'row')}; "
        f"{same} of the rows {'is' if same == 1 else 'are'} the same to the last digit"
    )


def summaries(report: Report) -> list[str]:
    """Return a sentence for each teacher of which this machine has rows beside committed ones."""
    sentences = [summary(data, of_teacher(data)) for data in report.parts.values()]
    return [sentence for sentence in sentences if sentence]
