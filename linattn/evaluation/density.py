"""Measure how dense a model's attention is: its softmax weights, as a share of dense attention's.

A layer's share is its operator's `density`. Layers weigh by the weights that dense attention would
compute in them, so a UNet's finest level decides.
"""

from collections.abc import Sequence

from torch import nn

from linattn import families
from linattn.attention.grid import Grid


def density(model: nn.Module, grids: Sequence[Grid], noise: float = 0.5) -> float | None:
    """Return the model's density at a noise level; None where an operator does not know its own.

    Args:
        model: a diffusers model, dense or converted.
        grids: the grid of each of its layers, as `families.grids` returns them.
        noise: the noise level, for operators whose options follow it.
    """
    computed, dense = 0.0, 0
    for layer, grid in zip(families.layers(model), grids, strict=True):
        share = 1.0 if layer.operator is None else layer.operator.density(grid, noise)
        if share is None:
            return None
        weights = layer.shape.heads * grid.tokens**2
        computed += share * weights
        dense += weights
    return computed / dense
