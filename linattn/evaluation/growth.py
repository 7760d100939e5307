"""Estimate how a cost grows with tokens: its exponent, and the seconds of the next size."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Timing = Mapping[str, Any]  # holds tokens and seconds, among others
Row = dict[str, Any]  # a timing that is still being written


def predict(timings: Sequence[Timing], tokens: int) -> float:
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


def exponent(timings: Sequence[Timing]) -> float | None:
    """Fit p of seconds ~ tokens^p by least squares on logarithms, over the larger half of sizes.

    The half has at least two sizes; with fewer the result is None. The smaller sizes are left out
    because they mostly measure the overhead of a call.
    """
    by_size = {row["tokens"]: row for row in timings if row["seconds"]}
    sizes = sorted(by_size)
    larger = sizes[-max(2, math.ceil(len(sizes) / 2)) :]
    return None if len(larger) < 2 else _slope([by_size[size] for size in larger])


def exponents(timings: Sequence[Timing]) -> dict[str, float | None]:
    """Return the exponent of every operator timed, the baseline included."""
    by_operator: dict[str, list[Timing]] = {}
    for row in timings:
        by_operator.setdefault(row["operator"], []).append(row)
    return {label: exponent(operator_rows) for label, operator_rows in by_operator.items()}


def _slope(timings: Sequence[Timing]) -> float:
    """Return the slope of log(seconds) over log(tokens)."""
    x = [math.log(row["tokens"]) for row in timings]
    y = [math.log(row["seconds"]) for row in timings]
    return statistics.linear_regression(x, y).slope
