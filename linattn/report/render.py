"""Fill the templates of reports/template, and write pages."""

from pathlib import Path
from typing import Any

from linattn import project
from linattn.report.numbers import short


def render(template: str, **values: Any) -> str:
    """Return a template filled with these values."""
    import jinja2

    folder = project.ROOT / "reports" / "template"
    if not folder.is_dir():  # the working directory is not the clone that holds this package
        folder = Path(__file__).resolve().parents[2] / "reports" / "template"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(short=short, literal=repr)
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str) -> Path:
    """Write a page, and return its path."""
    path.write_text(text, encoding="utf-8")
    return path
