"""Say what each layer costs under a candidate: by formula, by memory, or by a table of times.

Costs are shares of what softmax costs in all layers, so that one budget means the same by any of
them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from linattn import families
from linattn.attention.base import Operator
from linattn.attention.grid import Grid
from linattn.evaluation.memory import peak_memory
from linattn.names import known, short
from linattn.planning.candidates import SOFTMAX
from linattn.planning.front import UNITS, limit, units

Table = dict[str, list[float]]  # by label: a cost for each layer


def table(
    students: Mapping[str, nn.Module], grids: Sequence[Grid], by: str | Mapping[str, Any]
) -> Table:
    """Return the cost of every layer under every candidate, as a share of softmax's in all layers.

    Args:
        students: conversions of all layers, by label.
        grids: how the tokens of each layer lie.
        by: "macs", "bytes", or milliseconds by label, for all layers alike or a list of them.
    """
    check(by, list(students), len(grids))
    if isinstance(by, Mapping):
        costs = _from_times(by, list(students), len(grids))
    else:
        costs = {label: _counted(student, grids, COUNTS[by]) for label, student in students.items()}
    whole = sum(costs[SOFTMAX])
    return {label: [cost / whole for cost in of_layers] for label, of_layers in costs.items()}


def check(by: str | Mapping[str, Any], labels: Sequence[str], layers: int) -> None:
    """Raise ValueError where costs are to be counted by no known measure or by too few times."""
    if isinstance(by, Mapping):
        _from_times(by, labels, layers)
    else:
        known(by, COUNTS, "measure of cost")


def require(table: Table, budget: float) -> None:
    """Raise ValueError where even the cheapest candidate of every layer costs more."""
    # rounded as the front rounds, layer by layer
    least = sum(units(min(costs)) for costs in zip(*table.values(), strict=True))
    if least > limit(budget):
        raise ValueError(
            f"the cheapest plan costs {least / UNITS:.3f} of softmax, and the budget is "
            f"{budget:.3f}: raise it, or add a cheaper candidate"
        )


def _counted(student: nn.Module, grids: Sequence[Grid], measure: Any) -> list[float]:
    pairs = zip(families.layers(student), grids, strict=True)
    return [measure(layer, grid) for layer, grid in pairs]


def _macs(layer: families.Layer, grid: Grid) -> int:
    return cast(Operator, layer.operator).macs(grid)


@torch.no_grad()
def _bytes(layer: families.Layer, grid: Grid) -> int:
    """Measure what one picture's attention takes of the allocator at its peak."""
    # the layer's weights, since an operator may have none to say device and precision
    shape, weight = layer.shape, next(layer.attn.parameters())
    seeded = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 1, grid.tokens, shape.heads, shape.head_dim, generator=seeded)
    q, k, v = drawn.to(weight.device, weight.dtype)
    x = torch.zeros(1, grid.picture, shape.width).to(q)
    return peak_memory(lambda: cast(Operator, layer.operator)(q, k, v, grid, x), q.device)


COUNTS = {"macs": _macs, "bytes": _bytes}


def _from_times(times: Mapping[str, Any], labels: Sequence[str], layers: int) -> Table:
    """Read milliseconds by label, or raise ValueError for a label without or with too few."""
    if missing := [label for label in labels if label not in times]:
        raise ValueError(
            f"the table of times lacks {missing[0]!r}; it needs milliseconds for {short(labels)}"
        )
    return {label: _milliseconds(label, times[label], layers) for label in labels}


def _milliseconds(label: str, value: Any, layers: int) -> list[float]:
    times = list(value) if isinstance(value, Sequence) else [value] * layers
    real = all(isinstance(time, (int, float)) and 0 < time < float("inf") for time in times)
    if len(times) != layers or not real:
        raise ValueError(
            f"times of {label!r} are {short(value)}; pass a positive number of milliseconds, or "
            f"one for each of the {layers} layers"
        )
    return [float(time) for time in times]
