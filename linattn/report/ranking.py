"""Rank the rows of a teacher by a measure, and say which two of them are apart.

Two rows are compared in pairs (pairs.py) where both keep their sums, and else by their intervals.
"""

from linattn.report import pairs
from linattn.report.columns import Measure, measure
from linattn.report.data import Data

Ranking = list[tuple[str, Measure]]  # names and measures, the best first


def ranking(data: Data, key: str, better: str) -> Ranking:
    """Return the methods that have the measure, the best first; `better` is higher or lower."""
    measured = [(name, measure(data.results[name], key)) for name in data.methods]
    present = [(name, value) for name, value in measured if value]
    return sorted(present, key=lambda pair: pair[1]["value"], reverse=better == "higher")


def closest(data: Data) -> list[str]:
    """Return the names of the methods by error, the least first."""
    return [name for name, _ in ranking(data, "error", "lower")]


def ideas(data: Data) -> dict[str, str]:
    """Map each operator to its closest student, the closest operator first."""
    by_operator: dict[str, str] = {}
    for name in closest(data):
        by_operator.setdefault(data.students[name]["operator"], name)
    return by_operator


def apart(first: Measure, second: Measure) -> bool:
    """Say whether two intervals do not touch or, without intervals, whether the values differ."""
    low, high = sorted((first, second), key=lambda interval: interval["value"])
    if low.get("high") is None or high.get("low") is None:
        return low["value"] < high["value"]
    return low["high"] < high["low"]


def differ(data: Data, key: str, first: str, second: str) -> bool:
    """Say whether two students of a teacher are apart."""
    if pair := pairs.of_teacher(data, key, first, second):
        return pair.apart
    return apart(*(data.results[name]["quality"][key] for name in (first, second)))


def order(data: Data, first: str, second: str) -> str:
    """Say in words whether the errors of two students are apart."""
    if pair := pairs.of_teacher(data, pairs.ERROR, first, second):
        return pairs.in_words(pair)
    return touch(*(data.results[name]["quality"][pairs.ERROR] for name in (first, second)))


def touch(first: Measure, second: Measure) -> str:
    """Say in words whether two intervals touch."""
    overlap = "overlap, so the order is open"
    return f"their intervals {'do not touch' if apart(first, second) else overlap}"


def reaches(interval: Measure, value: float) -> bool:
    """Say whether a measure has an interval and the value lies in it."""
    low, high = interval.get("low"), interval.get("high")
    return low is not None and high is not None and low <= value <= high
