"""Executed notebooks as pages of the report: which there are, and their HTML in its dress."""

import html
import re
from pathlib import Path

from linattn import project
from linattn.report.data import Data, Report
from linattn.report.markup import without_addresses
from linattn.report.reading import FIRST


def executed(whole: Report) -> dict[str, Path]:
    """Title -> notebook, of those that have run; with several teachers a title begins with whose it is."""
    found: dict[str, str] = {}
    for part in whole.parts.values():
        found |= _of_teacher(part, f"{part.name}: " if whole.several else "")
    found |= {f"{name}: distillation": f"04_distill/{name}" for name in whole.students}
    found |= {f"{name}: evaluation": f"05_evaluate/{name}" for name in whole.students}
    return {title: path for title, name in found.items() if (path := project.executed(name)).exists()}


def _of_teacher(data: Data, whose: str) -> dict[str, str]:
    titles = {"What students learn from": f"02_sample/{data.role}"}
    if data.role == FIRST:
        titles |= {"What the teacher's attention looks like": "03_anatomy/anatomy"}
        titles |= {"Time against tokens": "06_benchmark/benchmark"}
    titles["The teacher's row"] = f"05_evaluate/{project.teacher_row(data.role)}"
    return {whose + title: name for title, name in titles.items()}


def notebook_body(path: Path) -> tuple[str, list[tuple[str, str]], str]:
    """(body, chapters as (anchor, title), the style of its code): no script, nothing fetched, alt texts kept."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    notebook = nbformat.read(path, as_version=4)
    exporter = HTMLExporter(template_name="basic", mathjax_url="", require_js_url="", mermaid_js_url="")
    body, _ = exporter.from_notebook_node(notebook)
    body = without_addresses(_described(body))
    body = _demoted(body)
    chapters = [
        (anchor, html.unescape(re.sub(r"<[^>]+>", "", words)).replace("¶", "").strip())
        for anchor, words in re.findall(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', body, re.S)
    ]
    return body, chapters, HtmlFormatter(style="default").get_style_defs(".highlight")


def _described(body: str) -> str:
    """An output picture without words gets honest ones; the figures of this project bring their own."""
    words = "A figure of this notebook, described in the text beside it."
    body = re.sub(r"<img(?![^>]*\balt=)", f'<img alt="{words}"', body)
    return body.replace("No description has been provided for this image", words)


def _demoted(body: str) -> str:
    """The page has its own h1: the notebook's first-level headings become its chapters."""
    if len(re.findall(r"<h1\b", body)) > 1:
        return re.sub(r"(</?)h1\b", r"\1h2", body)
    return re.sub(r"<h1\b.*?</h1>", "", body, flags=re.S)
