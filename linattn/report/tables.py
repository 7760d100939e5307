"""Results as rows: of one teacher in full, or of all teachers with the columns that compare them.

Best is judged among the methods of one teacher: a control keeps softmax and would win unfairly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linattn.report.columns import COLUMNS, OVERVIEW, Column, measure
from linattn.report.data import Data, Report
from linattn.report.words import KINDS, listed, percent


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    best: bool = False
    close: bool = False  # not the best, but its interval reaches the best value


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    cells: tuple[Cell, ...] = ()
    failure: str = ""
    page: str = ""
    note: str = ""


@dataclass(frozen=True)
class Group:
    heading: str
    rows: tuple[Row, ...]
    page: str = ""
    note: str = ""
    waiting: str = ""  # instead of rows: nothing ran yet


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]


def table(report: Report) -> Table:
    """The first page's: of all teachers, or all there is of the only one."""
    return of_all(report) if report.several else of_teacher(report.only)


def of_teacher(data: Data) -> Table:
    columns = _columns([data], [column.key for column in COLUMNS])
    rows = [*references(data, columns), *students(data, columns), *undistilled(data, columns)]
    kinds = {kind: tuple(row for row in rows if row.kind == kind) for kind in KINDS}
    return Table(columns, tuple(Group(KINDS[kind], own) for kind, own in kinds.items() if own))


def of_all(report: Report) -> Table:
    """A group a teacher: its own rows, chance, controls, students."""
    columns = _columns(report.parts.values(), OVERVIEW)
    return Table(columns, tuple(_group(data, columns) for data in report.parts.values()))


def _group(data: Data, columns: Sequence[Column]) -> Group:
    if data.waiting:
        waiting = f"no row yet, nor one of {listed(list(data.students))}: make repro makes them"
        return Group(data.name, (), data.page, data.told, waiting)
    own = sorted(students(data, columns, note="control"), key=lambda row: row.kind != "control")
    note = f"{data.told}; the committed run, not run here" if data.all_published else data.told
    return Group(data.name, (*references(data, columns), *own), data.page, note)


def _columns(parts: Iterable[Data], keys: Sequence[str]) -> tuple[Column, ...]:
    """Those of `keys` that somebody has a number for."""
    every = [result for data in parts for result in (data.teacher, data.chance, *data.results.values())]
    return tuple(column for column in COLUMNS if column.key in keys and any(column.read(each) for each in every))


def references(data: Data, columns: Sequence[Column]) -> list[Row]:
    """What bounds the students: the teacher, the teacher with fewer steps, guessing."""
    steps = (data.teacher.get("pictures") or {}).get("steps")
    note = ", ".join(filter(None, [f"{steps} steps" if steps else "", data.mark("teacher")]))
    rows = [Row("teacher", "reference", _cells(columns, data.teacher), failure=data.teacher_failure, note=note)]
    if quick := data.teacher.get("quick"):
        few = f"teacher, {data.teacher['pictures']['quick_steps']} steps"
        rows.append(Row(few, "reference", _cells(columns, {"quality": quick})))
    if data.chance:
        rows.append(Row("chance", "reference", _cells(columns, data.chance), note="guessing"))
    return rows


def students(data: Data, columns: Sequence[Column], note: str = "") -> list[Row]:
    """`note` marks the controls where no heading does."""
    judged = [data.results[name] for name in data.methods]
    best = {column.key: _best(column, judged) for column in columns}
    rows = []
    for name in data.students:
        kind = "control" if data.is_control(name) else "student"
        marks = filter(None, [note if kind == "control" else "", data.mark(name)])
        words = {"page": page_of(name), "note": ", ".join(marks)}
        if name in data.failures:
            rows.append(Row(name, kind, failure=data.failures[name], **words))
        else:
            cells = _cells(columns, data.results[name], best if kind == "student" else {})
            rows.append(Row(name, kind, cells, **words))
    return rows


def undistilled(data: Data, columns: Sequence[Column]) -> list[Row]:
    before = {name: data.results[name].get("undistilled") for name in data.done}
    return [
        Row(name, "undistilled", _cells(columns, {"quality": quality})) for name, quality in before.items() if quality
    ]


def page_of(name: str) -> str:
    return f"pages/{name}.html"


def _cells(
    columns: Sequence[Column], result: Mapping[str, Any], best: Mapping[str, float | None] | None = None
) -> tuple[Cell, ...]:
    return tuple(cell(column, column.read(result), (best or {}).get(column.key)) for column in columns)


def _best(column: Column, results: Sequence[Mapping[str, Any]]) -> float | None:
    values = [found["value"] for found in map(column.read, results) if found]
    if column.key.startswith("kid"):  # below zero is as good as zero: an estimate of no distance has both signs
        values = [max(0.0, value) for value in values]
    return (max if column.better == "higher" else min)(values) if values else None


def cell(column: Column, found: Mapping[str, Any] | None, best: float | None = None) -> Cell:
    if found is None:
        return Cell("–")
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    interval = f"{column.text(low)} to {column.text(high)}" if low is not None and high is not None else ""
    # Equal as printed is equal: two students on 93.8 % are both best.
    level = max(0.0, value) if column.key.startswith("kid") else value
    is_best = best is not None and column.text(level) == column.text(best)
    reaches = best is not None and low is not None and low <= best <= high
    return Cell(column.text(value), interval, is_best, reaches and not is_best)


# One idea for several teachers


@dataclass(frozen=True)
class Idea:
    """The student of one operator that came closest to one teacher."""

    student: str
    text: str
    best: bool


def ideas(report: Report) -> list[tuple[str, list[Idea | None]]]:
    """A line an operator, a place a teacher: the least error of its students there; only where two can be compared."""
    found = [_least(data) for data in report.parts.values()]
    if sum(bool(each) for each in found) < 2:
        return []
    operators = dict.fromkeys(entry["operator"] for entry in report.students.values())
    lines = [(operator, [each.get(operator) for each in found]) for operator in operators]
    return [(operator, line) for operator, line in lines if any(line)]


def _least(data: Data) -> dict[str, Idea]:
    errors = {name: value for name in data.methods if (value := measure(data.results[name], "error"))}
    ranked = sorted(errors, key=lambda name: errors[name]["value"])
    texts = {name: percent(errors[name]["value"]) for name in ranked}
    # The worst first, so that the best student of an operator is what stays.
    return {
        data.students[name]["operator"]: Idea(name, texts[name], texts[name] == texts[ranked[0]])
        for name in reversed(ranked)
    }
