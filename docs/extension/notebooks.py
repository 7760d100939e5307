"""Notebooks as pages: as they ran, where Git holds the executed one, and as sources elsewhere."""

from pathlib import Path

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from nbconvert import MarkdownExporter
from nbformat.v4 import new_markdown_cell
from sphinx.application import Sphinx
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
EXECUTED = ROOT / "reports" / "executed"
TEMPLATE = "notebook.md.j2"
INSIDE = Config(ExtractOutputPreprocessor={"enabled": False})  # pictures stay in the page


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class NotebookParser(MystParser):
    """Read a notebook as the Markdown that nbconvert makes of it."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        env = document.settings.env
        source = Path(env.doc2path(env.docname, base=False))
        executed = ran(source)
        content = executed.read_text() if executed else inputstring
        super().parse(markdown(content, source, executed), document)


def ran(source: Path) -> Path | None:
    """Return the executed notebook that Git holds of a source: one row of its stage."""
    paths = sorted((EXECUTED / source.stem).glob("*.ipynb"))
    return paths[0] if paths else None


def markdown(content: str, source: Path, executed: Path | None) -> str:
    """Return a notebook as Markdown, with a line below its title that leads to its source.

    Args:
        content: the notebook's JSON.
        source: the notebook in this repository.
        executed: where the content comes from, if it was executed.
    """
    notebook = nbformat.reads(content, as_version=4)
    title, *rest = notebook.cells
    heading, _, text = title.source.partition("\n")
    notebook.cells = [new_markdown_cell(f"{heading}\n\n{_origin(source, executed)}\n{text}"), *rest]
    exporter = MarkdownExporter(
        config=INSIDE, extra_template_paths=[str(Path(__file__).parent)], template_file=TEMPLATE
    )
    text, _ = exporter.from_notebook_node(notebook)
    return text


def _origin(source: Path, executed: Path | None) -> str:
    link = f"{{download}}`{source} <{source.name}>`"
    if executed:
        row = f"`{executed.stem}` in the committed run"
        return f"*This page is {link} as it ran for {row}. `make lab` opens it to change and run.*"
    return f"*This page is {link}, without outputs. `make lab` opens it to run.*"
