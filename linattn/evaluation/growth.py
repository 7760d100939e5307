"""Estimate how a cost grows with tokens: the exponent of the measured sizes, and the seconds of the
next size.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # holds tokens and seconds, among others


def predict(timings: Sequence[Row], tokens: int) -> float:
    """Predict the seconds at `tokens` from the last of the sizes timed so far.

    The exponent of the growth is the slope of the last two sizes, kept within 1 and 2, or 2 after a
    single size. The prediction is 0 without a row, and infinite after a size that was skipped.
    """
    if not timings:
        return 0.0
    last = timings[-1]
    if last["seconds"] is None:
        return math.inf
    growth = 2.0 if len(timings) < 2 else min(2.0, max(1.0, _slope(timings[-2:])))
    return last["seconds"] * (tokens / last["tokens"]) ** growth


def exponent(timings: Sequence[Row]) -> float | None:
    """Fit p of seconds ~ tokens^p by least squares on logarithms, over the larger half of the sizes
    (at least two).

    The smaller sizes are left out because they mostly measure the overhead of a call. The result is
    None with fewer than two sizes.
    """
    by_size = {row["tokens"]: row for row in timings if row["seconds"]}
    sizes = sorted(by_size)
    larger = sizes[-max(2, math.ceil(len(sizes) / 2)) :]
    return None if len(larger) < 2 else _slope([by_size[size] for size in larger])


def exponents(timings: Sequence[Row]) -> dict[str, float | None]:
    """Return the exponent of every operator timed, the baseline included."""
    by_operator: dict[str, list[Row]] = {}
    for row in timings:
        by_operator.setdefault(row["operator"], []).append(row)
    return {label: exponent(operator_rows) for label, operator_rows in by_operator.items()}


def _slope(timings: Sequence[Row]) -> float:
    """Return the slope of log(seconds) over log(tokens)."""
    x = [math.log(row["tokens"]) for row in timings]
    y = [math.log(row["seconds"]) for row in timings]
    return statistics.linear_regression(x, y).slope
