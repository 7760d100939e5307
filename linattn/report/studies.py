"""Side studies in the report: each study's module has a function `sections` that shows its
<name>.json.

- The result of a run on this machine is shown in place of the published one, unless `file`, which
  gives the path of a study's file, knows the published ones alone.
- `sections(file)` returns (title, HTML) pairs; a study without its JSON or its module is not shown.
- A study that cannot be shown is named with the reason; the report is made without it.
"""

import html
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from linattn import project
from linattn.report.markup import harmless, slug

STUDIES = {
    "operators": "linattn.studies.operators.report",
    "plugins": "linattn.studies.plugins.report",
    "resolution": "linattn.studies.resolution",
}


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    body: str  # HTML


def read(file: Callable[[str], Path] = project.study) -> list[Section]:
    """Return the sections of all studies with a result."""
    sections = []
    for name, module in STUDIES.items():
        if file(f"{name}.json").is_file():
            sections += _sections(name, module, file)
    return sections


def _sections(name: str, module: str, file: Callable[[str], Path]) -> list[Section]:
    try:
        if not _exists(module):
            return []
        titled = importlib.import_module(module).sections(file)
        return [
            Section(f"study-{name}-{slug(title)}", title, harmless(body)) for title, body in titled
        ]
    except Exception as error:
        reason = html.escape(f"{type(error).__name__}: {error}")
        text = f'<p class="failure">The study {name} cannot be shown ({reason}).</p>'
        return [Section(f"study-{name}", f"The study {name}", text)]


def _exists(module: str) -> bool:
    """Say whether a module and its parent packages exist, without running the module."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
