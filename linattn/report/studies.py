"""Side studies in the report: <name>.json is shown by the `sections` of the module that knows it.

- A result of its run here is shown in place of the published one.
- `sections()` returns (title, HTML) pairs; a study without its JSON, or whose module is not there, is not shown.
- One that cannot be shown is named with the reason: a broken study does not cost the report.
"""

import html
import importlib
import importlib.util
from dataclasses import dataclass

from linattn import project
from linattn.report.markup import slug, without_addresses

STUDIES = {"plugins": "linattn.studies.plugins.report", "resolution": "linattn.studies.resolution"}


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    body: str  # HTML


def read() -> list[Section]:
    return [section for name, module in STUDIES.items() if has_result(name) for section in _sections(name, module)]


def has_result(name: str) -> bool:
    return project.study(f"{name}.json").is_file()


def _sections(name: str, module: str) -> list[Section]:
    try:
        if not _exists(module):
            return []
        found = importlib.import_module(module).sections()
        return [Section(f"study-{name}-{slug(title)}", title, without_addresses(body)) for title, body in found]
    except Exception as error:
        why = html.escape(f"{type(error).__name__}: {error}")
        text = f'<p class="failure">The study {name} cannot be shown ({why}).</p>'
        return [Section(f"study-{name}", f"The study {name}", text)]


def _exists(module: str) -> bool:
    """Found without being run; a missing parent package is a missing module too."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
