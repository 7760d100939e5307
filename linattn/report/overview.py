"""The first screen: the pictures of every idea, and error against cost, over all teachers."""

from typing import Any

from linattn.report import figures
from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.picture import Look, Picture
from linattn.report.ranking import ideas

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")
SHOWN = 9  # pictures in a line, over all teachers


def pictures(report: Report, count: int | None = None) -> Picture | None:
    """Draw the teachers' pictures and those of each idea's closest student.

    `count` is the number of pictures a teacher; by default a line has SHOWN over all teachers.
    """
    parts = [data for data in report.parts.values() if "teacher" in data.pictures]
    if not parts:
        return None
    count = count or min(parts[0].show, max(1, SHOWN // len(parts)))
    teachers: dict[str, dict[str, Any]] = {}
    for data in parts:
        rows = {"teacher": "teacher", **ideas(data)}
        teachers[data.name] = {
            idea: data.pictures[name]["pictures"][:count]
            for idea, name in rows.items()
            if name in data.pictures
        }
    names = dict.fromkeys(("teacher", *(entry["operator"] for entry in report.students.values())))
    shown = [name for name in names if any(name in models for models in teachers.values())]
    return figures.blocks(teachers, shown)


def plot(report: Report) -> Picture | None:
    """Draw error against cost: the colour is the idea, the marker the teacher."""
    markers = dict(zip(report.parts, MARKERS, strict=False))
    points = []
    for role, data in report.parts.items():
        for name in data.methods:
            point = _point(data, name, report.looks[name], markers.get(role, "o"))
            points += [point] if point else []
    if len(points) < 2:
        return None
    named = {data.name: markers.get(role, "o") for role, data in report.parts.items()}
    return figures.quality_cost(
        points,
        x="attention's multiply-accumulates, × the teacher's",
        y="squared error, % of the teacher's square",
        log_y=True,
        markers=named if report.several else {},
    )


def _point(data: Data, name: str, look: Look, marker: str) -> dict[str, Any] | None:
    """Return a student's point, or None where its error, its cost or the teacher's is missing."""
    error = measure(data.results[name], "error")
    cost = measure(data.results[name], "core_macs", "cost")
    softmax = measure(data.teacher, "core_macs", "cost")
    if not error or not cost or not softmax:
        return None
    ends = [end for end in ("low", "high") if error.get(end) is not None]
    return {
        "name": name,
        "x": cost["value"] / softmax["value"],
        "y": 100 * error["value"],
        "look": Look(look.colour, marker, look.dash, look.hollow),
        **{end: 100 * error[end] for end in ends},
    }
