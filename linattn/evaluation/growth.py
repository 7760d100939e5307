"""How a cost grows with tokens: the exponent of what was measured, and the seconds that the next size will take."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]  # tokens and seconds among others


def predict(rows: Sequence[Row], tokens: int) -> float:
    """Seconds at `tokens`: quadratic growth from the last size measured; infinite after a size that was skipped."""
    if not rows:
        return 0.0
    last = rows[-1]
    if last["seconds"] is None:
        return math.inf
    growth = 2.0 if len(rows) < 2 else min(2.0, max(1.0, _slope(rows[-2:])))
    return last["seconds"] * (tokens / last["tokens"]) ** growth


def exponent(rows: Sequence[Row]) -> float | None:
    """p of seconds ~ tokens^p by least squares on logarithms, over the larger half of the sizes (at least two).

    The smaller sizes are mostly the cost of calling at all. None with fewer than two sizes.
    """
    points = {row["tokens"]: row for row in rows if row["seconds"]}
    sizes = sorted(points)
    kept = sizes[-max(2, math.ceil(len(sizes) / 2)) :]
    return None if len(kept) < 2 else _slope([points[size] for size in kept])


def exponents(rows: Sequence[Row]) -> dict[str, float | None]:
    """Of every operator in the rows, the baseline included."""
    labels = dict.fromkeys(row["operator"] for row in rows)
    return {label: exponent([row for row in rows if row["operator"] == label]) for label in labels}


def _slope(rows: Sequence[Row]) -> float:
    x = [math.log(row["tokens"]) for row in rows]
    y = [math.log(row["seconds"]) for row in rows]
    return statistics.linear_regression(x, y).slope
