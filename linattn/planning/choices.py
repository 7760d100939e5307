"""Choose layers without measuring what they lose: interleaved, first, last, or by an order."""

import functools
from collections.abc import Callable, Sequence

from linattn.evaluation.anatomy import chosen_layers

Rule = Callable[[int], list[int]]  # from how many layers are replaced to their numbers


def rules(layers: int, ranked: Sequence[int] = ()) -> dict[str, Rule]:
    """Return the rules by name; diagnostics are among them where they rank the layers.

    Args:
        layers: how many the model has.
        ranked: their numbers, from the one that diagnostics would replace first.
    """
    orders = {"first": range(layers), "last": range(layers)[::-1], "diagnostics": ranked}
    by_order = {name: functools.partial(leading, order) for name, order in orders.items() if order}
    return {"interleaved": functools.partial(chosen_layers, layers), **by_order}


def leading(order: Sequence[int], count: int) -> list[int]:
    """Return the first `count` layers of an order."""
    return sorted(order[:count])
