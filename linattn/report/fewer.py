"""Rows of a teacher with fewer steps: its quick row, and its draws of a half and a quarter."""

from collections.abc import Mapping
from typing import Any

Result = dict[str, Any]


def of_teacher(teacher: Mapping[str, Any]) -> dict[int, Result]:
    """Return a teacher's results by its number of steps, the most steps first.

    The quick row has what the judge marks, and its entry in `fewer` the distance to the full draw.
    """
    by_steps: dict[int, Result] = {}
    if quick := teacher.get("quick"):
        by_steps[teacher["pictures"]["quick_steps"]] = {"quality": dict(quick)}
    for entry in teacher.get("fewer") or ():
        result = by_steps.setdefault(entry["steps"], {"quality": {}})
        result["quality"] |= entry["quality"]
        result["cost"] = entry["cost"]
    return dict(sorted(by_steps.items(), reverse=True))


def name_of(steps: int) -> str:
    """Name the row of a number of steps."""
    return f"teacher, {steps} step{'' if steps == 1 else 's'}"
