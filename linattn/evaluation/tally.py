"""Tally what each picture adds to a row's error and marks, so that rows can be compared in pairs.

All rows of a teacher share pictures and noise: what makes one picture hard is common to two rows
and leaves their difference, which a mean with its interval cannot show.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Squares = Mapping[str, list[list[float]]]  # of "error" and "teacher", levels x pictures
DIGITS = 9  # as many as carry a float32, in which the models predict


def tally(by_seed: Mapping[int, tuple[Squares, Mapping[str, Tensor]]]) -> dict[str, Any]:
    """Return {teacher, seeds: {seed: {error, marks}}}, in plain values.

    The teacher's squares are the same for every seed. A mark is a text with a 1 for each picture
    that is right and a 0 for each other.

    Args:
        by_seed: squares and marks of the student that a training seed gave.
    """
    teacher, seeds = [], {}
    for seed, (squares, marks) in by_seed.items():
        teacher = _rounded(squares["teacher"])
        texts = {name: _text(right) for name, right in marks.items()}
        seeds[str(seed)] = {"error": _rounded(squares["error"]), "marks": texts}
    return {"teacher": teacher, "seeds": seeds}


def _rounded(levels: list[list[float]]) -> list[list[float]]:
    """Round to DIGITS digits, which is half of what JSON would write."""
    return [[float(f"{square:.{DIGITS}g}") for square in pictures] for pictures in levels]


def _text(right: Tensor) -> str:
    return "".join(str(int(mark)) for mark in right.tolist())
