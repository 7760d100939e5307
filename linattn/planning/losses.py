"""Estimate what each layer loses under a candidate, so that the losses of layers add up.

A layer's loss is the geometric mean of two errors: of the teacher with this layer alone replaced,
and of what the model with all layers replaced gets back where this one stays softmax. The first
sees a layer beside exact ones, the second beside replaced ones, and a plan lies between: half of
dit-nano's cost loses 0.080 by this sum and 0.070 measured (docs/LOG.md, 2026-11-29).
"""

import math

from linattn.planning.candidates import SOFTMAX
from linattn.planning.judge import Judge

Table = dict[str, list[list[float]]]  # by label: a loss for each layer and range of noise


def table(judge: Judge) -> Table:
    """Return the losses of every candidate, weighed by the share of each range."""
    count, ranges = len(judge.composite.layers), range(len(judge.ranges))
    return {
        label: [[loss(judge, label, layer, number) for number in ranges] for layer in range(count)]
        for label in judge.composite.attentions
    }


def loss(judge: Judge, label: str, layer: int, number: int) -> float:
    """Return the loss of one layer under a candidate in one range."""
    if label == SOFTMAX:
        return 0.0
    rise, fall = alone(judge, label, layer, number), returned(judge, label, layer, number)
    return judge.ranges[number].share * math.sqrt(max(rise, 0.0) * max(fall, 0.0))


def alone(judge: Judge, label: str, layer: int, number: int) -> float:
    """Return the error where this layer alone is replaced."""
    return judge.error(_but(judge, SOFTMAX, layer, label), number)


def returned(judge: Judge, label: str, layer: int, number: int) -> float:
    """Return how much less the error is where this layer alone is not replaced."""
    all_replaced = [label] * len(judge.composite.layers)
    return judge.error(all_replaced, number) - judge.error(
        _but(judge, label, layer, SOFTMAX), number
    )


def _but(judge: Judge, label: str, layer: int, other: str) -> list[str]:
    """Return one label for all layers but one."""
    labels = [label] * len(judge.composite.layers)
    labels[layer] = other
    return labels
