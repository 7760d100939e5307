"""Refuse what cannot be drawn, with a sentence that names it, before anything is drawn."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def some(values: Collection[Any], noun: str) -> None:
    """Raise ValueError where there is nothing to draw.

    Args:
        values: what is drawn.
        noun: what it is, in the plural, for the error.
    """
    if not len(values):
        raise ValueError(f"there are no {noun} to draw: pass one or more")


def number(value: Any, place: str) -> float:
    """Return a finite number, or raise ValueError that names the place of another value."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{place} is {value!r}; it must be a number")
    if not math.isfinite(value):
        raise ValueError(f"{place} is {value!r}; it must be finite, so leave it out")
    return float(value)


def line(values: Iterable[Any], place: str) -> list[float]:
    """Return finite numbers, or raise ValueError that names the place of another value."""
    return [number(value, f"{place}[{index}]") for index, value in enumerate(values)]


def alike(lines: Mapping[str, Sequence[Any]], place: str) -> None:
    """Raise ValueError unless lists of numbers are finite, of one length and not empty."""
    for name, values in lines.items():
        some(values, f"numbers in {name} of {place}")
        line(values, f"{place}: {name}")
    lengths = {name: len(values) for name, values in lines.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{place}: lists of one length differ: {counted}")


def table(values: Any, shape: tuple[int, int], place: str) -> np.ndarray:
    """Return a table of numbers, NaN for None, or raise ValueError for another shape.

    Args:
        values: lines of numbers or None.
        shape: how many lines of how many numbers.
        place: the figure's title, for the error.
    """
    try:
        numbers = np.array(values, float)
    except (TypeError, ValueError):
        reason = "its lines differ in length or hold no numbers"
        raise ValueError(f"{place} is no table of numbers: {reason}") from None
    if numbers.shape != shape:
        raise ValueError(
            f"{place} has shape {numbers.shape}, and its rows and columns have names for {shape}"
        )
    if np.isinf(numbers).any():
        raise ValueError(f"{place} holds an infinite number; pass None where there is none")
    return numbers


def above_zero(
    points: Sequence[Mapping[str, Any]], axes: Iterable[str]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the points that logarithmic axes can show, and the names of the others."""
    shown, names = [], []
    for point in points:
        if all(point[axis] > 0 for axis in axes):
            shown.append(point)
        else:
            names.append(point["name"])
    return shown, names
