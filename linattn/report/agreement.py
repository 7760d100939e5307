"""Compare this machine's run with the committed one: the same rows, figure by figure.

Processors differ in the order of their sums, so a training ends with other bits, and its figures
move a little. A figure agrees where each run's value lies in the other's 95 % interval, or where
both print alike: untrained softmax has an error of 1e-13 and an interval as narrow. A figure
without an interval, such as a cost, must be equal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from linattn.report import fewer
from linattn.report.columns import COLUMNS, Column, Measure
from linattn.report.data import Data, Measured, Report, Result
from linattn.report.tables import Cell, cell
from linattn.report.words import are, listed, number


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
        figures: list[Figure] = []
        for row in self.rows:
            figures += filter(None, row.figures)
        return figures


def of_teacher(data: Data) -> Agreement:
    """Compare all rows of a teacher that both runs have."""
    here, committed = results_of(data.here), results_of(data.committed)
    pairs = {name: (here[name], committed[name]) for name in here if name in committed}
    columns = tuple(column for column in COLUMNS if _in_any(column, pairs.values()))
    return Agreement(columns, tuple(_row(name, columns, *pair) for name, pair in pairs.items()))


def _in_any(column: Column, pairs: Iterable[tuple[Result, Result]]) -> bool:
    """Say whether any row has the column's figure in both runs."""
    return any(column.read(here) and column.read(committed) for here, committed in pairs)


def results_of(run: Measured) -> dict[str, Result]:
    """Return the results of a teacher's table by row name, with the rows before distillation."""
    results = {
        "teacher": run.teacher,
        **{fewer.name_of(steps): row for steps, row in fewer.of_teacher(run.teacher).items()},
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
    """Say how many figures of a teacher agree, which rows do not, and which were not compared."""
    if data.all_published:
        return f"{data.name} was not run here: its rows are the committed run's."
    kept = [name for name in ("teacher", *data.students) if name in data.published]
    here = results_of(data.here)
    only_committed = [name for name in results_of(data.committed) if name not in here]
    lost = [name for name in only_committed if "not distilled" not in name]
    apart = [row.name for row in agreement.rows if not row.agrees]
    clauses = [
        _counts(agreement),
        f"apart {are(apart)} {listed(apart)}" if apart else "",
        f"not run here {are(kept)} {listed(kept)}" if kept else "",
        f"committed and without a result here {are(lost)} {listed(lost)}" if lost else "",
    ]
    sentence = "; ".join(filter(None, clauses))
    return f"{data.name}: {sentence}." if sentence else ""


def _counts(agreement: Agreement) -> str:
    if not agreement.rows:
        return ""
    figures = [figure.agrees for figure in agreement.figures]
    same = [row.name for row in agreement.rows if row.same]
    return (
        f"{sum(figures)} of {number(len(figures), 'figure')} agree, in "
        f"{number(len(agreement.rows), 'row')}; "
        f"{len(same)} of the rows {are(same)} the same to the last digit"
    )


def summaries(report: Report) -> list[str]:
    """Return a sentence for each teacher of which this machine has rows beside committed ones."""
    sentences = [summary(data, of_teacher(data)) for data in report.parts.values()]
    return [sentence for sentence in sentences if sentence]
