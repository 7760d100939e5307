"""Measure how dense a model's attention is: its softmax weights, as a share of dense attention's.

A layer's share is its operator's `density`. Layers weigh by the weights that dense attention would
compute in them, so a UNet's finest level decides.
"""

from collections.abc import Sequence

from torch import nn

from linattn import families
from linattn.attention.grid import Grid
from linattn.reader import between, checked, typed


@checked(model=typed(), grids=typed(), noise=between(0, 1))
def density(model: nn.Module, grids: Sequence[Grid], noise: float = 0.5) -> float | None:
    """Return the model's density at a noise level; None where an operator does not know its own.

    Args:
        model: a diffusers model, dense or converted.
        grids: the grid of each of its layers, as `families.grids` returns them.
        noise: the noise level, for operators whose options follow it.
    """
    computed, dense = 0.0, 0
    layers = families.layers(model)
    if len(grids) != len(layers):
        raise ValueError(
            f"{len(grids)} grids for {len(layers)} layers; pass what families.grids returns"
        )
    for layer, grid in zip(layers, grids, strict=True):
        share = 1.0 if layer.operator is None else layer.operator.density(grid, noise)
        if share is None:
            return None
        weights = layer.shape.heads * grid.tokens**2
        computed += share * weights
        dense += weights
    return computed / dense
