"""The pages: index.html, and in pages/ one for each student, notebook and, of several, teacher."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn.attention import OPERATORS
from linattn.report import (
    agreement,
    circumstances,
    leaderboard,
    limits,
    matrix,
    overview,
    pairs,
    pictures,
    plans,
    sentences,
    steps,
    tables,
)
from linattn.report.charts import plots, student_plots
from linattn.report.columns import COLUMNS
from linattn.report.data import Data, Report
from linattn.report.markup import slug
from linattn.report.notebook import notebook_body
from linattn.report.reading import options
from linattn.report.render import render as _render, write_page as _write
from linattn.report.timing import baseline
from linattn.report.words import number

Link = Mapping[str, str]


def write(report: Report, folder: Path, notebooks: Mapping[str, Path] | None = None) -> Path:
    """Write `folder`/index.html, its leaderboard.html and `folder`/pages/*.html.

    Args:
        report: the report of all teachers.
        folder: where the pages are written; it is made where it is missing.
        notebooks: maps a title to an executed notebook.
    """
    folder = Path(folder)
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    links = []
    for title, path in (notebooks or {}).items():
        href = f"pages/notebook-{slug(title)}.html"
        _write(folder / href, notebook_html(path, title))
        links.append({"title": title, "href": href})
    for name in report.students:
        _write(folder / tables.page_of(name), student_html(report, name, links))
    if report.several:
        for role, data in report.parts.items():
            _write(folder / data.page, teacher_html(report, role, links))
    leaderboard.write(report, folder)
    return _write(folder / "index.html", index_html(report, links))


def index_html(report: Report, notebooks: Sequence[Link] = ()) -> str:
    """Return the first page: everything of the only teacher, or one table over several teachers.

    Args:
        report: the report of all teachers.
        notebooks: links to notebooks' pages, each with title and href.
    """
    if not report.several:
        return teacher_html(report, report.only.role, notebooks)
    shown = []
    for data in report.parts.values():
        shown.append({"data": data, "findings": sentences.in_short(data), **_glimpse(data)})
    return _render(
        "index.html.j2",
        title=_title(report),
        report=report,
        data=report,
        first=_first(report),
        table=tables.table(report),
        pairing=pairs.note(report.parts.values()),
        parts_shown=shown,
        findings=sentences.of_all(report),
        by_idea=tables.ideas(report),
        ideas=_ideas(report),
        limits=limits.of_all(report),
        notebooks=notebooks,
        machine=circumstances.machine(report),
        counts=circumstances.counts(report),
        sizes=circumstances.all_sizes(report),
        agreement=agreement.summaries(report),
        root="",
        here="index.html",
    )


def teacher_html(report: Report, role: str, notebooks: Sequence[Link] = ()) -> str:
    """Return the page of one teacher, which is the first page if there is no other teacher.

    Args:
        report: the report of all teachers.
        role: the teacher's role in params.yaml.
        notebooks: links to notebooks' pages, each with title and href.
    """
    data = report.parts[role]
    agreed = agreement.of_teacher(data)
    names = [data.name, *data.students]
    links = [link for link in notebooks if not report.several or _is_of(link["title"], names)]
    return _render(
        "teacher.html.j2",
        title=_title_of(data, report.several),
        report=report,
        data=data,
        first=_first(Report(report.profile, {role: data})),
        table=tables.of_teacher(data),
        pairing=pairs.note([data]),
        matrix=matrix.of_teacher(data),
        findings=sentences.of_teacher(data),
        plots=plots(data),
        strips=pictures.strips(data),
        columns=pictures.column_names(data),
        ideas=_ideas(data),
        limits=limits.of_teacher(data),
        machine=circumstances.machine(data),
        notebooks=links,
        counts=circumstances.counts(data),
        sizes=circumstances.sizes(data),
        baseline=baseline(data),
        planned=plans.described(data.plan, data.plan_run) if data.plan else {},
        steps=steps.table(data.benchmark.get("steps") or []),
        agreed=agreed,
        agreement=agreement.summary(data, agreed),
        empty=report.several and data.waiting,
        root="../" if report.several else "",
        here=data.page,
    )


def student_html(report: Report, name: str, notebooks: Sequence[Link] = ()) -> str:
    """Return the page of one student.

    Args:
        report: the report of all teachers.
        name: the student's name in params.yaml.
        notebooks: links to notebooks' pages, each with title and href.
    """
    data = report.of(name)
    entry = data.students[name]
    student = f"{name}: one student of {data.name}" if report.several else f"{name}: one student"
    return _render(
        "student.html.j2",
        title=f"{student} in detail",
        report=report,
        data=data,
        name=name,
        entry=entry,
        options=options(entry),
        idea=about(entry["operator"]),
        failure=data.failures.get(name),
        numbers=_numbers(data, name),
        rows=pictures.detail(data, name),
        columns=pictures.column_names(data),
        notebooks=[link for link in notebooks if _is_of(link["title"], [name])],
        plots=student_plots(data, name),
        seconds=data.runs.get(name, {}).get("seconds") or {},
        machine=circumstances.machine(data, name),
        sizes=circumstances.sizes(data),
        root="../",
        here="",
        names=list(data.students),
    )


def notebook_html(path: Path, title: str) -> str:
    """Return the page of an executed notebook, or of what is wrong with its file."""
    try:
        body, chapters, style = notebook_body(path)
    except ValueError as error:
        body, chapters, style = f'<p class="failure">{html.escape(str(error))}</p>', [], ""
    return _render(
        "notebook.html.j2", title=title, body=body, chapters=chapters, code_style=style, root="../"
    )


def _is_of(title: str, names: Sequence[str]) -> bool:
    return title.startswith(tuple(f"{name}: " for name in names))


def _title(report: Report) -> str:
    students = f"{len(report.students)} students of {len(report.parts)} teachers"
    return f"Linear attention for pre-trained diffusion models: {students}"


def _title_of(data: Data, several: bool) -> str:
    if several:
        return f"{data.name}: {number(len(data.students), 'student')} of one teacher"
    return f"Linear attention for {data.name}: {len(data.students)} students of one teacher"


def _first(report: Report) -> dict[str, Any]:
    """Return the first screen: the finding, the pictures of every idea, error against cost."""
    return {
        "headline": sentences.headline(report),
        "pictures": overview.pictures(report),
        "plot": overview.plot(report),
    }


def _glimpse(data: Data) -> dict[str, Any]:
    """Return a teacher's part of the first page: its pictures and the closest student's."""
    names = ["teacher", *sentences.closest(data)[:1]]
    return {
        "strips": pictures.strips(data, names) if "teacher" in data.pictures else [],
        "columns": pictures.column_names(data),
    }


def _ideas(data: Data | Report) -> list[tuple[str, str]]:
    operators = dict.fromkeys(entry["operator"] for entry in data.students.values())
    return [(operator, about(operator)) for operator in operators if about(operator)]


def about(operator: str) -> str:
    """Return an operator's sentence for the report; nothing of one that is not registered here."""
    registered = OPERATORS.find(operator)
    return registered.about if registered else ""


def _numbers(data: Data, name: str) -> list[dict[str, Any]]:
    """Return a line for each measure of a student: the teacher's, before and after distillation."""
    result = data.results.get(name, {})
    undistilled = {"quality": result.get("undistilled") or {}}
    lines = []
    for column in COLUMNS:
        after = column.read(result)
        if after is None:
            continue
        before = column.read(undistilled) if column.section == "quality" else None
        measures = (column.read(data.teacher), before, after)
        line = {"title": column.title, "note": column.note, "better": column.better}
        lines.append({**line, "cells": [tables.cell(column, measure) for measure in measures]})
    return lines
