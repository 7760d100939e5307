"""Measure what a student is worth: its distance to the teacher, its marks, its costs, and its
teacher's attention.

`evaluation.evaluate` makes a row; `report.markdown.of_row` writes it as a Markdown table.
"""

import importlib
from typing import Any

# Imported on first access: timing attention alone (costs.py, amdahl.py) then loads neither judge
# nor teachers. `told` is the name under which the Markdown table was public at first.
_NAMES = {
    "evaluate": ("linattn.evaluation.evaluation", "evaluate"),
    "told": ("linattn.report.markdown", "of_row"),
}

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
