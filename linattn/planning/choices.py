"""Choose layers without measuring what they lose: interleaved, first, last, or by diagnostics."""

from collections.abc import Callable, Mapping, Sequence

from linattn.evaluation.anatomy import chosen_layers

# What an operator bets on, and whether more of it is better (evaluation/diagnostics.py).
BETS = {
    "clear": ("share", True),
    "linfusion": ("rank", False),
    "lit": ("rank", False),
    "mediator": ("redundancy", False),
}


def first(count: int, layers: int) -> list[int]:
    return list(range(count))


def last(count: int, layers: int) -> list[int]:
    return list(range(layers - count, layers))


def interleaved(count: int, layers: int) -> list[int]:
    return chosen_layers(layers, count)


CHOICES: Mapping[str, Callable[[int, int], list[int]]] = {
    "interleaved": interleaved,
    "first": first,
    "last": last,
}


def by_diagnostics(operator: str, measures: Mapping[str, Sequence[float]], count: int) -> list[int]:
    """Return the layers that have most of what the operator bets on.

    Args:
        operator: one of `BETS`.
        measures: by name, a value for each layer.
        count: how many layers are replaced.
    """
    measure, more = BETS[operator]
    values = measures[measure]
    ranked = sorted(range(len(values)), key=lambda layer: values[layer], reverse=more)
    return sorted(ranked[:count])
