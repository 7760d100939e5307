"""Executed notebooks as pages of the report: their titles and paths, and their HTML."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linattn import project
from linattn.report.data import Data, Report
from linattn.report.markup import harmless
from linattn.report.stored import damaged


def executed(report: Report, file: Callable[[str], Path] = project.executed) -> dict[str, Path]:
    """Map titles to the notebooks that have run.

    With several teachers a title begins with the teacher's name.

    Args:
        report: the report whose teachers and students have notebooks.
        file: gives the path of an executed notebook.
    """
    names: dict[str, str] = {}  # by title
    for data in report.parts.values():
        names |= _of_teacher(data, f"{data.name}: " if report.several else "")
    names |= {f"{name}: distillation": f"04_distill/{name}" for name in report.students}
    names |= {f"{name}: evaluation": f"05_evaluate/{name}" for name in report.students}
    paths = {title: file(name) for title, name in names.items()}
    return {title: path for title, path in paths.items() if path.exists()}


def _of_teacher(data: Data, prefix: str) -> dict[str, str]:
    titles = {
        "What students learn from": f"02_sample/{data.role}",
        "What the teacher's attention looks like": f"03_anatomy/{data.role}",
        "Time against tokens": f"06_benchmark/{data.role}",
        "Which layers to replace": f"08_plan/{data.role}",
        "The teacher's row": f"05_evaluate/{project.teacher_row(data.role)}",
    }
    return {prefix + title: name for title, name in titles.items()}


def notebook_body(path: Path) -> tuple[str, list[tuple[str, str]], str]:
    """Return a notebook's body, its chapters as (anchor, title), and the style of its code.

    Nothing in the body runs or is fetched; its pictures keep their alt texts. A file that is no
    notebook is a ValueError that names it.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter  # pyrefly: ignore[untyped-import] has no stubs

    notebook = _read(path)
    exporter = HTMLExporter(
        template_name="basic", mathjax_url="", require_js_url="", mermaid_js_url=""
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = _demoted(harmless(_described(body)))
    chapters = []
    for anchor, heading in re.findall(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', body, re.S):
        title = html.unescape(re.sub(r"<[^>]+>", "", heading)).replace("¶", "").strip()
        chapters.append((anchor, title))
    return body, chapters, HtmlFormatter(style="default").get_style_defs(".highlight")


def _read(path: Path) -> Any:
    """Read a notebook, or raise ValueError that names the file and the remedy."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # of another kind, nbformat ends in whatever it meets first
        reason = str(error).partition("\n")[0][:160]
        raise ValueError(damaged(path, f"{type(error).__name__}: {reason}")) from error
    return notebook


def _described(body: str) -> str:
    """Give an alt text to every picture without one; the figures of this project have their own."""
    words = "A figure of this notebook, described in the text beside it."
    body = re.sub(r"<img(?![^>]*\balt=)", f'<img alt="{words}"', body)
    return body.replace("No description has been provided for this image", words)


def _demoted(body: str) -> str:
    """Turn first-level headings into chapters, since the page has an h1.

    A single one repeats the page's title and is cut.
    """
    if len(re.findall(r"<h1\b", body)) > 1:
        return re.sub(r"(</?)h1\b", r"\1h2", body)
    return re.sub(r"<h1\b.*?</h1>", "", body, flags=re.S)
