"""Write the study's sections of the report: for each teacher a table, error against cost, and which
student is nearest to the teacher at which noise.
"""

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import project
from linattn.report import figures, studyparts
from linattn.report.columns import COLUMNS, Measure
from linattn.report.looks import looks
from linattn.report.picture import Picture
from linattn.report.words import listed, with_interval
from linattn.studies.operators.settings import RESULT

Row = Mapping[str, Any]
MARKS = tuple(column for column in COLUMNS if column.key in ("error", "shape", "colour"))
HEADS = (
    "",
    "Operator",
    "Undistilled, %",
    *(f"{column.title}, %" for column in MARKS),
    "Attention, % of softmax",
    "Added, k",
    "Seconds",
)
NEAREST = 3  # students of each noise level that the last figure shows
UNTRAINED = "untrained"
ERROR = "error, % of the teacher's square"
INCHES = 0.1  # of the first figure's height for each name in it


def sections(file: Callable[[str], Path] | None = None) -> list[tuple[str, str]]:
    """Return (title, HTML) of the study and each teacher, and nothing where it was not run.

    `file` gives the path of a study's file; by default of the run here, else the published one.
    """
    file = file or project.study
    if not file(RESULT).exists():
        return []
    result, path = project.read_json(file(RESULT)), file(studyparts.run_name("operators"))
    runs = project.read_json(path)["rows"] if path.exists() else {}
    titled = [("Every operator at one budget", _paragraph(_intro(runs)))]
    for teacher in result["teachers"].values():
        titled.append((f"Every operator on {teacher['folder']}", of_teacher(teacher, runs)))
    return titled


def of_teacher(teacher: Row, runs: Mapping[str, Row]) -> str:
    """Write a teacher's section."""
    blocks = [_paragraph(_protocol(teacher)), table(teacher, runs), _findings(teacher)]
    if trained(teacher):
        blocks += [_figure(cost_figure(teacher)), _figure(noise_figure(teacher))]
    return "\n".join(filter(None, blocks))


def trained(teacher: Row) -> list[Row]:
    """Return the rows that did not fail, the nearest to the teacher first."""
    done = [row for row in teacher["rows"] if "failure" not in row]
    return sorted(done, key=lambda row: row["quality"]["error"]["value"])


# Words


def _intro(runs: Mapping[str, Row]) -> str:
    machines = dict.fromkeys(
        studyparts.measured_on(run["facts"]) for run in runs.values() if run.get("facts")
    )
    where = f" Seconds are of training, on {'; '.join(machines)}." if machines else ""
    return (
        "Every operator, and options of other papers, learned for the same steps on the same "
        "samples as the students of the tables above, which stand here beside them. Undistilled is "
        "the error before any step. A student that adds nothing to learn has a row of its own "
        f"before training, of as many pictures. Intervals are of 95 %.{where}"
    )


def _protocol(teacher: Row) -> str:
    """Say how many pictures, steps and seeds a teacher's rows have."""
    sizes, training = teacher["pictures"], teacher["training"]
    if not sizes:
        return "No student came to its end."
    whole = training["steps"] - training["layerwise_steps"]
    seeds = ", ".join(map(str, teacher["seeds"]))
    return (
        f"N is {sizes['errors']} latents of the teacher for the error, {sizes['pictures']} "
        f"pictures of {sizes['steps']} steps for the marks (seed {sizes['seed']}). Training: "
        f"{training['layerwise_steps']} steps layer by layer and {whole} of the whole model, of "
        f"{training['batch']} of {training['samples']} pictures (seed {seeds})."
    )


def _findings(teacher: Row) -> str:
    """Name the nearest student of each noise level, the failures, and the rows left out."""
    sentences = [f"{row['student']} failed: {row['failure']}." for row in _failures(teacher)]
    if teacher["left_out"]:
        names = listed(teacher["left_out"])
        sentences.append(f"Trained or evaluated otherwise, and not shown: {names}.")
    sentences += [_nearest(level, ranked) for level, ranked in by_level(teacher).items()]
    items = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="findings">\n{items}\n</ul>' if items else ""


def _failures(teacher: Row) -> list[Row]:
    return [row for row in teacher["rows"] if "failure" in row]


def _nearest(level: float, ranked: Sequence[tuple[str, Measure]]) -> str:
    """Say which student has the least error at a noise level, and whose interval reaches it."""
    (name, least), *others = ranked
    close = [other for other, error in others if error["low"] <= least["value"]]
    open_order = f"; the intervals of {listed(close)} reach it" if close else ""
    return f"Noise {level:g}: {name} is nearest, {with_interval(least)}{open_order}."


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


# The table


def table(teacher: Row, runs: Mapping[str, Row]) -> str:
    """Write a line for each student by its error, then those that failed."""
    lines = []
    for row in (*trained(teacher), *_failures(teacher)):
        seconds = ((runs.get(row["student"]) or {}).get("seconds") or {}).get("distill")
        lines.append((row["student"], _cells(teacher, row, "quality", seconds)))
        if UNTRAINED in row:
            lines.append((f"{row['student']}, {UNTRAINED}", _cells(teacher, row, UNTRAINED, 0)))
    return studyparts.table("Students of one teacher", HEADS, lines)


def _cells(teacher: Row, row: Row, quality: str, seconds: float | None) -> list[studyparts.Cell]:
    marks = row.get(quality, {})
    share = _share(teacher, row)
    added = (row.get("cost") or {}).get("added")
    return [
        described(row),
        _cell((row.get("undistilled") or {}).get("error")),
        *(_cell(marks.get(column.key)) for column in MARKS),
        "–" if share is None else f"{share:.1f}",
        "–" if added is None else f"{added / 1000:.1f}",
        "–" if seconds is None else f"{seconds:.0f}",
    ]


def _cell(measure: Measure | None) -> studyparts.Cell:
    return studyparts.cell(measure) if measure else "–"


def described(row: Row) -> str:
    """Return a row's operator with its options."""
    return " ".join([row["operator"], *(f"{key}={value}" for key, value in row["options"].items())])


def _share(teacher: Row, row: Row) -> float | None:
    """Return what all attention of a forward multiplies, in % of softmax's."""
    macs = (row.get("cost") or {}).get("core_macs")
    return None if macs is None else 100 * macs / teacher["softmax_macs"]


# The figures


def cost_figure(teacher: Row) -> Picture:
    """Draw the error of every student against what its attention multiplies.

    A student before training has the colour of its operator, and a star.
    """
    rows = trained(teacher)
    styles = looks({row["student"]: row["operator"] for row in teacher["rows"]})
    points = []
    for row in rows:
        name, cost = row["student"], {"x": _share(teacher, row)}
        points.append({"name": name, **cost, **_point(row["quality"]), "look": styles[name]})
        if UNTRAINED in row:
            star = {"look": dataclasses.replace(styles[name], marker="*", hollow=True)}
            point = {"name": f"{name}, {UNTRAINED}", **cost, **_point(row[UNTRAINED])}
            points.append(point | star)
    axes = {"x": "multiply-accumulates of attention, % of softmax's", "y": ERROR, "log_y": True}
    return figures.quality_cost(points, **axes, height=3 + INCHES * len(points))


def _point(quality: Row) -> dict[str, Any]:
    error = quality["error"]
    return {"y": 100 * error["value"], "low": 100 * error["low"], "high": 100 * error["high"]}


def by_level(teacher: Row) -> dict[float, list[tuple[str, Measure]]]:
    """Rank the students at each noise level by their error, controls left out."""
    methods = [row for row in trained(teacher) if not row["control"]]
    levels = methods[0]["by_noise"]["noise"] if methods else []
    ranked = {}
    for index, level in enumerate(levels):
        errors = [(row["student"], row["by_noise"]["error"][index]) for row in methods]
        ranked[level] = sorted(errors, key=lambda pair: pair[1]["value"])
    return ranked


def noise_figure(teacher: Row) -> Picture:
    """Draw how many times the least error each of the nearest students has at each noise level."""
    ranked = by_level(teacher)
    near = {name for errors in ranked.values() for name, _ in errors[:NEAREST]}
    names = [row["student"] for row in trained(teacher) if row["student"] in near]
    times = []
    for name in names:
        times.append(
            [dict(errors)[name]["value"] / errors[0][1]["value"] for errors in ranked.values()]
        )
    levels = [f"{level:g}" for level in ranked]
    title = "error over the least at that noise"
    return figures.heatmap(times, rows=names, columns=levels, title=title, x="noise", y="student")


def _figure(picture: Picture) -> str:
    return f"<figure>{picture.html()}</figure>"
