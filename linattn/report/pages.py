"""The pages: index.html, and below pages/ one a teacher where there are several, one a student, one a notebook."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linattn import project
from linattn.report import agreement, circumstances, limits, pictures, sentences, steps, tables
from linattn.report.charts import plots, student_plots
from linattn.report.columns import COLUMNS
from linattn.report.data import Data, Report
from linattn.report.markup import slug
from linattn.report.notebook import notebook_body
from linattn.report.numbers import short
from linattn.report.reading import FIRST, options
from linattn.report.timing import baseline
from linattn.report.words import IDEAS, number

Link = Mapping[str, str]


def write(whole: Report, folder: Path, notebooks: Mapping[str, Path] | None = None) -> Path:
    """`folder`/index.html and `folder`/pages/*.html; `notebooks` maps a title to an executed notebook."""
    folder = Path(folder)
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    links = []
    for title, path in (notebooks or {}).items():
        href = f"pages/notebook-{slug(title)}.html"
        _write(folder / href, notebook_html(path, title))
        links.append({"title": title, "href": href})
    for name in whole.students:
        _write(folder / tables.page_of(name), student_html(whole, name, links))
    for role, part in whole.parts.items() if whole.several else ():
        _write(folder / part.page, teacher_html(whole, role, links))
    return _write(folder / "index.html", index_html(whole, links))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def index_html(whole: Report, notebooks: Sequence[Link] = ()) -> str:
    """With one teacher everything of it; with several one table over all, and a page each."""
    if not whole.several:
        return teacher_html(whole, whole.only.role, notebooks)
    shown = [{"data": part, "findings": sentences.in_short(part), **_glimpse(part)} for part in whole.parts.values()]
    return _render(
        "index.html.j2", title=_title(whole), whole=whole, data=whole, table=tables.table(whole), parts_shown=shown,
        findings=sentences.of_all(whole), by_idea=tables.ideas(whole), ideas=_ideas(whole), limits=limits.of_all(whole),
        machine=circumstances.machine(whole), counts=circumstances.counts(whole), notebooks=notebooks,
        sizes=circumstances.all_sizes(whole), agreement=agreement.summaries(whole), root="", here="index.html",
    )  # fmt: skip


def teacher_html(whole: Report, role: str, notebooks: Sequence[Link] = ()) -> str:
    """Everything of one teacher: the first page if there is no other, else a page of its own."""
    data = whole.parts[role]
    agreed = agreement.of_teacher(data)
    own = [each for each in notebooks if not whole.several or _is_of(each["title"], [data.name, *data.students])]
    return _render(
        "teacher.html.j2", title=_title_of(data, whole.several), whole=whole, data=data,
        table=tables.of_teacher(data), findings=sentences.of_teacher(data), plots=plots(data),
        strips=pictures.strips(data), columns=pictures.column_names(data), ideas=_ideas(data),
        limits=limits.of_teacher(data, alone=not whole.several), machine=circumstances.machine(data), notebooks=own,
        counts=circumstances.counts(data), sizes=circumstances.sizes(data), baseline=baseline(data),
        steps=steps.table(data.benchmark.get("steps") or []), agreed=agreed, agreement=agreement.summary(data, agreed),
        empty=whole.several and data.waiting, root="../" if whole.several else "", here=data.page,
    )  # fmt: skip


def student_html(whole: Report, name: str, notebooks: Sequence[Link] = ()) -> str:
    data = whole.of(name)
    entry, several = data.students[name], whole.several
    title = f"{name}: one student of {data.name} in detail" if several else f"{name}: one student in detail"
    return _render(
        "student.html.j2", title=title, whole=whole, data=data, name=name, entry=entry, options=options(entry),
        idea=IDEAS.get(entry["operator"], ""), failure=data.failures.get(name), numbers=_numbers(data, name),
        rows=pictures.detail(data, name), columns=pictures.column_names(data),
        notebooks=[each for each in notebooks if _is_of(each["title"], [name])], plots=student_plots(data, name),
        seconds=data.runs.get(name, {}).get("seconds") or {}, machine=circumstances.machine(data, name),
        sizes=circumstances.sizes(data), root="../", here="", names=list(data.students),
    )  # fmt: skip


def notebook_html(path: Path, title: str) -> str:
    """An executed notebook in the report's own dress."""
    body, chapters, style = notebook_body(path)
    return _render("notebook.html.j2", title=title, body=body, chapters=chapters, code_style=style, root="../")


def _is_of(title: str, names: Sequence[str]) -> bool:
    return title.startswith(tuple(f"{name}: " for name in names))


def _title(whole: Report) -> str:
    count = len(whole.students)
    return f"Linear attention for pre-trained diffusion models: {count} students of {len(whole.parts)} teachers"


def _title_of(data: Data, several: bool) -> str:
    if several:
        return f"{data.name}: {number(len(data.students), 'student')} of one teacher"
    model = "a diffusion transformer" if data.role == FIRST else data.name
    return f"Linear attention for {model}: {len(data.students)} students of one teacher"


def _glimpse(data: Data) -> dict[str, Any]:
    """On the first page: what the teacher draws, and whoever is closest to it."""
    names = ["teacher", *sentences.closest(data)[:1]]
    return {
        "strips": pictures.strips(data, names) if "teacher" in data.pictures else [],
        "columns": pictures.column_names(data),
    }


def _ideas(data: Data | Report) -> list[tuple[str, str]]:
    operators = dict.fromkeys(entry["operator"] for entry in data.students.values())
    return [(operator, IDEAS[operator]) for operator in operators if operator in IDEAS]


def _numbers(data: Data, name: str) -> list[dict[str, Any]]:
    """A line a measure: teacher, before, after."""
    result, lines = data.results.get(name, {}), []
    for column in COLUMNS:
        after = column.read(result)
        if after is None:
            continue
        before = column.read({"quality": result.get("undistilled") or {}}) if column.part == "quality" else None
        cells = [tables.cell(column, each) for each in (column.read(data.teacher), before, after)]
        lines.append({"title": column.title, "note": column.note, "better": column.better, "cells": cells})
    return lines


def _render(template: str, **values: Any) -> str:
    import jinja2

    folder = project.ROOT / "reports" / "template"
    if not folder.is_dir():  # the package in a clone, the working tree elsewhere
        folder = Path(__file__).resolve().parents[2] / "reports" / "template"
    world = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    world.filters.update(short=short, literal=repr)
    return world.get_template(template).render(**values)
