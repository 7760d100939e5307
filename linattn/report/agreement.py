"""Whether this machine's run agrees with the committed one: the same rows, figure by figure.

Processors differ in the order of their sums, so a training ends with other bits, and its figures move a little. A
figure agrees where each run's value lies in the other's 95 % interval, or where both are the same as printed: softmax
that nobody trained has an error of 1e-13 and an interval as narrow. One without an interval, as a cost, must be equal.
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
    """One measure of one row, as measured here and as committed."""

    here: Cell
    committed: Cell
    agrees: bool


@dataclass(frozen=True)
class Row:
    name: str
    figures: tuple[Figure | None, ...]  # one a column; None where a run has no such figure
    same: bool  # every figure is the same number

    @property
    def agrees(self) -> bool:
        return all(figure.agrees for figure in self.figures if figure)


@dataclass(frozen=True)
class Agreement:
    """All rows of one teacher that both runs have."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def figures(self) -> list[Figure]:
        return [figure for row in self.rows for figure in row.figures if figure]


def of_teacher(data: Data) -> Agreement:
    here, committed = rows(data.here), rows(data.committed)
    names = [name for name in here if name in committed]
    pairs = {name: (here[name], committed[name]) for name in names}
    columns = tuple(column for column in COLUMNS if any(column.read(a) and column.read(b) for a, b in pairs.values()))
    return Agreement(columns, tuple(_row(name, columns, *pairs[name]) for name in names))


def rows(run: Measured) -> dict[str, Result]:
    """Every row of a teacher's table by its name, the rows without distillation too."""
    quick = {"quality": run.teacher.get("quick")}
    references = {"teacher": run.teacher, "teacher, fewer steps": quick, "chance": run.chance}
    before = {f"{name}, not distilled": {"quality": each.get("undistilled")} for name, each in run.students.items()}
    return {name: result for name, result in {**references, **run.students, **before}.items() if result.get("quality")}


def _row(name: str, columns: Sequence[Column], here: Result, committed: Result) -> Row:
    measures = [(column, column.read(here), column.read(committed)) for column in columns]
    figures = tuple(_figure(*each) if each[1] and each[2] else None for each in measures)
    return Row(name, figures, all(a["value"] == b["value"] for _, a, b in measures if a and b))


def _figure(column: Column, here: Measure, committed: Measure) -> Figure:
    return Figure(cell(column, here), cell(column, committed), agree(column, here, committed))


def agree(column: Column, here: Measure, committed: Measure) -> bool:
    values = here["value"], committed["value"]
    if None in (here.get("low"), committed.get("low")):
        return values[0] == values[1]
    within = here["low"] <= values[1] <= here["high"] and committed["low"] <= values[0] <= committed["high"]
    return within or column.text(values[0]) == column.text(values[1])


def summary(data: Data, agreement: Agreement) -> str:
    """Say in one sentence for one teacher how many figures agree, which rows do not, and which were not compared."""
    if data.all_published:
        return f"{data.name} was not run here: its rows are the committed run's."
    kept = [name for name in ("teacher", *data.students) if name in data.published]
    lost = [name for name in rows(data.committed) if name not in rows(data.here) and "not distilled" not in name]
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
    figures, same = [figure.agrees for figure in agreement.figures], sum(row.same for row in agreement.rows)
    return (
        f"{sum(figures)} of {number(len(figures), 'figure')} agree, in {number(len(agreement.rows), 'row')}; "
        f"{same} of the rows {'is' if same == 1 else 'are'} the same to the last digit"
    )


def summaries(whole: Report) -> list[str]:
    """A sentence a teacher, where this machine has rows of its own beside committed ones."""
    agreements = {role: of_teacher(part) for role, part in whole.parts.items()}
    return [words for role, part in whole.parts.items() if (words := summary(part, agreements[role]))]
