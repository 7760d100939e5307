"""Tables of results: of one teacher in full, or of all teachers with the columns that compare them.

The best is chosen among the methods of one teacher: a control keeps softmax and would win unfairly.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linattn.report import fewer, pairs
from linattn.report.columns import COLUMNS, OVERVIEW, Column, Measure
from linattn.report.data import Data, Report
from linattn.report.ranking import ranking, reaches
from linattn.report.words import KINDS, listed, percent


@dataclass(frozen=True)
class Cell:
    """Hold one value of a table, written out, with its interval."""

    text: str  # the value as it is written
    interval: str = ""  # its 95 % interval
    best: bool = False  # whether the column has no better value
    close: bool = False  # not the best, and not apart from it


@dataclass(frozen=True)
class Row:
    """Hold one row of a table: its name and its cells, or what failed."""

    name: str  # the student's, or the teacher's
    kind: str  # reference, student or control
    cells: tuple[Cell, ...] = ()  # one for each column
    failure: str = ""  # what failed, in one line; shown instead of cells
    page: str = ""  # the row's own page
    note: str = ""  # a remark under the name


@dataclass(frozen=True)
class Group:
    """Hold rows of a table under a heading."""

    heading: str  # what the rows have in common: their teacher, or what they are
    rows: tuple[Row, ...]  # from top to bottom
    page: str = ""  # the heading's own page
    note: str = ""  # a remark under the heading
    waiting: str = ""  # shown instead of rows where nothing ran yet


@dataclass(frozen=True)
class Table:
    """Hold a table: its columns, and its rows in groups."""

    columns: tuple[Column, ...]  # from left to right
    groups: tuple[Group, ...]  # one for each teacher, or for each sort of row

    @property
    def rows(self) -> list[Row]:
        return list(itertools.chain.from_iterable(group.rows for group in self.groups))


def table(report: Report) -> Table:
    """Return the first page's table: of all teachers, or the full table of the only one.

    Args:
        report: the report of all teachers.
    """
    return of_all(report) if report.several else of_teacher(report.only)


def of_teacher(data: Data) -> Table:
    """Return the full table of one teacher, with a group for each kind of row."""
    columns = _columns([data], [column.key for column in COLUMNS])
    rows = [*references(data, columns), *students(data, columns), *undistilled(data, columns)]
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    headed = [(heading, by_kind.get(kind)) for kind, heading in KINDS.items()]
    return Table(columns, tuple(Group(heading, tuple(group)) for heading, group in headed if group))


def of_all(report: Report) -> Table:
    """Return a table with a group for each teacher: its own rows, chance, controls, students."""
    columns = _columns(report.parts.values(), OVERVIEW)
    return Table(columns, tuple(_group(data, columns) for data in report.parts.values()))


def _group(data: Data, columns: Sequence[Column]) -> Group:
    if data.waiting:
        waiting = f"no row yet, nor one of {listed(list(data.students))}: make repro makes them"
        return Group(data.name, (), data.page, data.prompts_in_words, waiting)
    rows = sorted(students(data, columns, note="control"), key=lambda row: row.kind != "control")
    note = (
        f"{data.prompts_in_words}; the committed run, not run here"
        if data.all_published
        else data.prompts_in_words
    )
    return Group(data.name, (*references(data, columns, brief=True), *rows), data.page, note)


def _columns(teachers: Iterable[Data], keys: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of `keys` for which any row has a number."""
    results: list[Mapping[str, Any]] = []
    for data in teachers:
        results += [data.teacher, data.chance, *data.results.values()]
    chosen = [column for column in COLUMNS if column.key in keys]
    return tuple(column for column in chosen if any(map(column.read, results)))


def references(data: Data, columns: Sequence[Column], brief: bool = False) -> list[Row]:
    """Return the rows that bound the students: the teacher, also with fewer steps, and guessing.

    Args:
        data: the data of one teacher.
        columns: the columns of the table.
        brief: whether to leave out all step counts but the quick rows'.
    """
    sizes = data.teacher.get("pictures") or {}
    note = _joined(f"{sizes['steps']} steps" if sizes else "", data.mark("teacher"))
    cells = _cells(columns, data.teacher)
    rows = [Row("teacher", "reference", cells, failure=data.teacher_failure, note=note)]
    for steps, result in fewer.of_teacher(data.teacher).items():
        if not brief or steps == sizes["quick_steps"]:
            rows.append(Row(fewer.name_of(steps), "reference", _cells(columns, result)))
    if data.chance.get("quality"):
        rows.append(Row("chance", "reference", _cells(columns, data.chance), note="guessing"))
    return rows


def _joined(*notes: str) -> str:
    """Join the notes that are not empty."""
    return ", ".join(filter(None, notes))


def students(data: Data, columns: Sequence[Column], note: str = "") -> list[Row]:
    """Return a row for each student; `note` marks the controls where no heading does."""
    candidates = [data.results[name] for name in data.methods]
    columns_compared = columns if len(candidates) > 1 else ()
    best = {column.key: _best(column, candidates) for column in columns_compared}
    rows = []
    for name in data.students:
        kind = "control" if data.is_control(name) else "student"
        page, row_note = page_of(name), _joined(note if kind == "control" else "", data.mark(name))
        if name in data.failures:
            rows.append(Row(name, kind, failure=data.failures[name], page=page, note=row_note))
        else:
            bests = best if kind == "student" else {}
            cells = tuple(
                _compared(data, column, name, bests.get(column.key)) for column in columns
            )
            rows.append(Row(name, kind, cells, page=page, note=row_note))
    return rows


def undistilled(data: Data, columns: Sequence[Column]) -> list[Row]:
    """Return a row for each student before distillation."""
    rows = []
    for name in data.done:
        quality = data.results[name].get("undistilled")
        if quality:
            rows.append(Row(name, "undistilled", _cells(columns, {"quality": quality})))
    return rows


def page_of(name: str) -> str:
    """Return the path of a student's page."""
    return f"pages/{name}.html"


def _cells(columns: Sequence[Column], result: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Write a result's cells, none of them compared."""
    return tuple(cell(column, column.read(result)) for column in columns)


def _compared(data: Data, column: Column, name: str, best: float | None) -> Cell:
    """Write a student's cell, compared with the method that has the best value of the column."""
    return cell(column, column.read(data.results[name]), best, _open(data, column, name, best))


def _open(data: Data, column: Column, name: str, best: float | None) -> bool | None:
    """Say whether a pair leaves the order open; None where there is no pair."""
    for other in data.methods if best is not None else []:
        value = column.read(data.results[other])
        if value and _level(column, value["value"]) == best:
            pair = pairs.of_teacher(data, column.key, name, other)
            return None if pair is None else not pair.apart
    return None


def _best(column: Column, results: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the best value, or None where no result has one."""
    measures = [measure for measure in map(column.read, results) if measure]
    values = [_level(column, measure["value"]) for measure in measures]
    if not values:
        return None
    return max(values) if column.better == "higher" else min(values)


def cell(
    column: Column,
    measure: Measure | None,
    best: float | None = None,
    close: bool | None = None,
) -> Cell:
    """Write a measure as a cell, marked where it is the best or not apart from it.

    Args:
        column: the measure's column.
        measure: what is written.
        best: the best value of the column; None marks nothing.
        close: whether a pair leaves the order open; without a pair the interval says.
    """
    if measure is None:
        return Cell("–")
    value, low, high = measure["value"], measure.get("low"), measure.get("high")
    bounded = low is not None and high is not None
    interval = f"{column.text(low)} to {column.text(high)}" if bounded else ""
    if best is None:
        return Cell(column.text(value), interval)
    # Values that print alike are equal: two students on 93.8 % are both best.
    is_best = column.text(_level(column, value)) == column.text(best)
    reached = reaches(measure, best) if close is None else close
    return Cell(column.text(value), interval, is_best, reached and not is_best)


def _level(column: Column, value: float) -> float:
    """Return the value by which rows are ranked.

    An estimate of a zero distance has either sign, so a KID below zero is as good as zero.
    """
    return max(0.0, value) if "kid" in column.key else value


# One idea for several teachers


@dataclass(frozen=True)
class Idea:
    """Hold the student of one operator that is closest to one teacher."""

    student: str
    text: str
    best: bool
    teacher: str


def ideas(report: Report) -> list[tuple[str, list[Idea | None]]]:
    """Return for each operator its closest student of every teacher, or None where it has none.

    The list is empty where fewer than two teachers can be compared.
    """
    teachers = [_least(data) for data in report.parts.values()]
    if sum(bool(teacher) for teacher in teachers) < 2:
        return []
    lines = []
    for operator in dict.fromkeys(entry["operator"] for entry in report.students.values()):
        line = [teacher.get(operator) for teacher in teachers]
        if any(line):
            lines.append((operator, line))
    return lines


def _least(data: Data) -> dict[str, Idea]:
    """Return the student with the least error of each operator."""
    least: dict[str, Idea] = {}
    texts = [(name, percent(error["value"])) for name, error in ranking(data, "error", "lower")]
    for name, text in texts:
        best = text == texts[0][1]  # errors that print alike are both best
        least.setdefault(data.students[name]["operator"], Idea(name, text, best, data.name))
    return least
