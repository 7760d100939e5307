"""Pages without scripts, a sidebar that follows docs/index.md, and the report inside the site."""

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from linattn.report import release

ROOT = Path(__file__).parents[2]
CONTENTS = "docs/index"
ENTRY = re.compile(r"- \[(?P<title>[^]]+)\]\((?P<target>[^)]+)\).*\n?")
WHERE = (
    'In this site: <a href="report/index.html">the report of the committed run</a>, '
    "[all pages](docs/index.md), [the API](docs/api/linattn.md)."
)
LINK = re.compile(r"\[(?P<text>[^]]+)\]\((?P<target>[^)\s:#]+)\)")
HEADING = re.compile(r"## (?P<title>.+)")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", extend)
    app.connect("html-page-context", without_scripts)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def extend(app: Sphinx, docname: str, content: list[str]) -> None:
    """Give the root its links and toctrees, and the page of examples their code; unlink folders."""
    folder = Path(app.env.doc2path(docname)).parent
    content[0] = LINK.sub(functools.partial(_without_folder, folder), content[0])
    if docname == CONTENTS:
        content[0] = ENTRY.sub(_if_there, content[0])
    if docname == app.config.root_doc:
        index = (ROOT / f"{CONTENTS}.md").read_text()
        title, _, text = content[0].partition("\n")
        content[0] = f"{title}\n\n{WHERE}\n{text}"
        content[0] += toctree("", [f"Contents </{CONTENTS}>"])
        for caption, entries in contents(index):
            content[0] += toctree(caption, entries)
    if docname == "examples/README":
        content[0] += "".join(map(_code, sorted((ROOT / "examples").glob("*.py"))))


def contents(index: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings of docs/index.md with the toctree's entries under each."""
    for section in re.split(r"^(?=## )", index, flags=re.M)[1:]:
        entries = []
        for match in filter(_if_there, ENTRY.finditer(section)):
            entries.append(f"{match['title']} </{_path(match).relative_to(ROOT)}>")
        yield HEADING.match(section)["title"], entries


def _path(match: re.Match) -> Path:
    return (ROOT / "docs" / match["target"]).resolve()


def _if_there(match: re.Match) -> str:
    return match[0] if _path(match).exists() else ""


def _without_folder(folder: Path, match: re.Match) -> str:
    """Return a link as it is, or the text of one to a folder, which has no page."""
    return match["text"] if (folder / match["target"]).is_dir() else match[0]


def toctree(caption: str, entries: list[str]) -> str:
    """Return a toctree that only the sidebar shows."""
    listed = "\n".join(entries)
    title = f":caption: {caption}\n" if caption else ""
    return f"\n\n```{{toctree}}\n:hidden:\n{title}\n{listed}\n```\n"


def _code(path: Path) -> str:
    return f"\n\n## {path.name}\n\n```{{literalinclude}} {path.name}\n:language: python\n```\n"


def without_scripts(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Leave scripts to the search, which is nothing without them."""
    if pagename != "search":
        context["script_files"] = []


def finish(app: Sphinx, error: Exception | None) -> None:
    """Write the report into the site, and the home page under the name that browsers open."""
    if error is None and app.builder.format == "html":
        outdir = Path(app.outdir)
        release.render(outdir / "report")
        shutil.copyfile(outdir / f"{app.config.root_doc}.html", outdir / "index.html")
