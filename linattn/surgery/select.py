"""Choose self-attention layers of a model: by number, name, predicate, or a phrase as every:2."""

from collections.abc import Callable, Iterable, Sequence

from linattn.families import Layer
from linattn.names import nearest

DIGITS = 10  # of a number of layers, which are fewer
Selection = str | int | Sequence[int | str] | Callable[[Layer], bool]


def select(layers: Sequence[Layer], which: Selection = "all") -> list[Layer]:
    """Return the chosen layers in forward order.

    `which` is all, every:2 (0, 2, ...), first:4, last:4, except:<any of these>, a layer's number or
    name, a list of these, or a predicate of the layer.
    """
    indices = _indices(layers, which)
    if not indices:
        raise ValueError(f"layers={which!r} selects none of the {len(layers)} layers")
    return [layer for layer in layers if layer.index in indices]


def _indices(layers: Sequence[Layer], which: Selection) -> set[int]:
    if callable(which):
        return {layer.index for layer in layers if which(layer)}
    if isinstance(which, str):
        return _phrase_indices(layers, which)
    if isinstance(which, Iterable):
        return set().union(*(_indices(layers, item) for item in which))
    return {_index(layers, which)}


def _phrase_indices(layers: Sequence[Layer], which: str) -> set[int]:
    """Read a phrase such as every:2, or a layer's name."""
    all_indices = {layer.index for layer in layers}
    word, _, rest = which.partition(":")
    if which == "all":
        return all_indices
    if word == "except" and rest:
        return all_indices - _indices(layers, rest)
    if word in ("first", "last", "every") and rest.isdecimal() and len(rest) < DIGITS:
        return set(_counted(len(layers), word, int(rest)))
    return {_index(layers, which)}


def _counted(layers: int, word: str, count: int) -> range:
    if not 1 <= count <= layers:
        raise ValueError(
            f"layers='{word}:{count}': a number from 1 to {layers}, the layers of this model"
        )
    if word == "first":
        return range(count)
    return range(layers - count, layers) if word == "last" else range(0, layers, count)


def _index(layers: Sequence[Layer], which: int | str) -> int:
    if isinstance(which, int) and not isinstance(which, bool):
        if not -len(layers) <= which < len(layers):
            raise ValueError(f"no layer {which}: this model has {len(layers)}, numbered from 0")
        return which % len(layers)
    for layer in layers:
        if layer.name == which:
            return layer.index
    names = [layer.name for layer in layers]
    raise nearest(
        "layer",
        which,
        [*names, "all", "every:2", "first:1", "last:1", "except:first:1"],
        listed="all, every:2, first:4, last:4, except:first:2, "
        f"numbers up to {len(layers) - 1}, and names like {names[0]!r}",
    )
