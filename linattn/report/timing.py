"""Times of one attention call, from the benchmark."""

from typing import Any

from linattn.report.data import Data


def timed(data: Data) -> list[dict[str, Any]]:
    """Return the benchmark's rows that have a time."""
    return [row for row in data.benchmark.get("rows") or [] if row.get("seconds")]


def baseline(data: Data) -> str:
    """Name the dense attention that everything is timed against."""
    named = (row.get("baseline") for row in data.benchmark.get("rows") or [])
    return data.benchmark.get("baseline") or next((name for name in named if name), "softmax")
