"""Exchange the operators of two layers as long as the measured error falls.

Losses that add up order near choices wrongly: on dit-nano the pair of least summed loss is the
second best of 15 for a disc (docs/LOG.md, 2026-11-29), and one exchange away from the best.
"""

import itertools
from collections.abc import Sequence

from linattn.planning.front import limit
from linattn.planning.survey import Survey

Choice = tuple[tuple[str, ...], ...]  # a label for each range of each layer


def improved(measured: Survey, choice: Choice, budget: float) -> Choice:
    """Return a choice that no exchange of two layers under the budget makes better."""
    while True:
        error = measured.judge.total
        nearest = min(neighbours(measured, choice, budget), key=error, default=choice)
        if error(nearest) >= error(choice):
            return choice
        choice = nearest


def neighbours(measured: Survey, choice: Choice, budget: float) -> list[Choice]:
    """Return the choices with two layers exchanged that keep the budget."""
    pairs = itertools.combinations(range(len(choice)), 2)
    exchanged = [swapped(choice, i, j) for i, j in pairs if choice[i] != choice[j]]
    return [other for other in exchanged if measured.units(other) <= limit(budget)]


def swapped(choice: Sequence[tuple[str, ...]], i: int, j: int) -> Choice:
    """Return a choice with the labels of two layers exchanged."""
    labels = list(choice)
    labels[i], labels[j] = labels[j], labels[i]
    return tuple(labels)
