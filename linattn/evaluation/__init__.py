"""What a student is worth: its distance to the teacher, its marks, its costs, and what its teacher's attention is like.

`evaluation.evaluate` makes a row and `evaluation.told` tells it in Markdown.
"""

import importlib
from typing import Any

# Found when first asked for: whoever times attention alone (costs.py, amdahl.py) loads neither judge nor teachers.
_HOMES = {"evaluate": "linattn.evaluation.evaluation", "told": "linattn.evaluation.markdown"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
