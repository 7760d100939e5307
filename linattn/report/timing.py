"""Times of one attention call and of whole steps, as the benchmark left them."""

from typing import Any

from linattn.report.data import Data


def timed(data: Data) -> list[dict[str, Any]]:
    return [row for row in data.benchmark.get("rows") or [] if row.get("seconds")]


def baseline(data: Data) -> str:
    """The dense attention everything is timed against, by its name."""
    named = (row.get("baseline") for row in data.benchmark.get("rows") or [])
    return data.benchmark.get("baseline") or next((name for name in named if name), "softmax")
