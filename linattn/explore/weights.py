"""Compute the attention of one token at one step of a trace."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, sampling
from linattn.attention.grid import Grid
from linattn.explore.tracing import Trace
from linattn.names import short


@torch.no_grad()
def attention(model: nn.Module, trace: Trace, step: int, layer: int, token: int) -> Tensor:
    """Return the attention weights of one token at one step: (heads, height, width).

    The model runs on the inputs that the trace recorded. The weights are one row of the layer's
    attention map.

    Args:
        model: the teacher's model, or a student's.
        trace: how the picture was drawn.
        step: the number of the step, from 0 at pure noise.
        layer: the number of the layer in forward order.
        token: the number of the picture's token, row by row.
    """
    layers = families.layers(model)
    check("step", step, trace.steps)
    check("layer", layer, len(layers))
    check("token", token, trace.grid.picture)
    families.require_map(layers[layer])
    with sampling.evaluating(model), families.capture(model, detach=True) as captured:
        model(**trace.inputs[step])
    call = captured[layer]
    grid = call["grid"]
    maps = families.attention_map(layers[layer], call["input"], grid, call["noise"], **call["more"])
    query = grid.text + covering(token, trace.grid, grid)
    weights = maps[0, :, query, grid.text :]  # (heads, picture)
    return weights.reshape(len(weights), grid.height, grid.width).float().cpu()


def covering(token: int, grid: Grid, other: Grid) -> int:
    """Return the token of another grid that covers the middle of this token.

    Args:
        token: the number of a token of `grid`, row by row.
        grid: the grid of the token.
        other: the grid in which to look.
    """
    row, column = divmod(token, grid.width)
    row = (2 * row + 1) * other.height // (2 * grid.height)
    column = (2 * column + 1) * other.width // (2 * grid.width)
    return row * other.width + column


def head(weights: Tensor, number: int | None) -> Tensor:
    """Return one head of the weights, or the mean over heads.

    The last head stands for a number that is too high, since a student may have fewer heads than
    its teacher.

    Args:
        weights: (heads, height, width).
        number: the number of the head; None takes the mean.
    """
    if number is None:
        return weights.mean(0)
    check("head", number)
    return weights[min(number, len(weights) - 1)]


def check(noun: str, index: Any, count: int | None = None) -> None:
    """Refuse what is no number of a step, a layer, a token or a head.

    Args:
        noun: what is numbered.
        index: the number.
        count: how many there are; None sets no limit.
    """
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise ValueError(f"{noun} is {short(index)}; pass a whole number from 0 on")
    if index < 0 or (count is not None and int(index) >= count):
        numbers = f"there are {count}, from 0 to {count - 1}" if count else "they begin at 0"
        raise ValueError(f"{noun} {index} does not exist: {numbers}")
