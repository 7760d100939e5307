"""Measure what a student is worth: its distance to the teacher, its marks, its costs, and its
teacher's attention.

`evaluation.evaluate` makes a row and `evaluation.told` writes it as a Markdown table.
"""

import importlib
from typing import Any

# Imported on first access: timing attention alone (costs.py, amdahl.py) then loads neither judge
# nor teachers.
_MODULES = {"evaluate": "linattn.evaluation.evaluation", "told": "linattn.evaluation.markdown"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
