"""What a faster attention gives a whole step, and the most it could give: Amdahl's share beside the step's own time.

- `share`: how much of the dense model's step its attention takes, which is the attention of all layers timed alone on
  tensors of its size; `most` = 1 / (1 - share) is the step without it, as if the replacement cost nothing.
- Converted models are not trained: weights have no part in the time.
- Each converted model is timed in turns with the dense one, so that a busy minute hits both; two models at a time are
  all that must fit. Shares come from turns of the dense step and its attention.
"""

import copy
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from linattn import families, surgery
from linattn.evaluation import costs
from linattn.evaluation.costs import Row
from linattn.sampling import evaluating

DENSE, OTHER = "dense", "other"


@torch.no_grad()
def time_steps(
    model: nn.Module,
    operators: Mapping[str, tuple[str, Mapping[str, Any]]],
    sides: Sequence[int],
    repeats: int = 3,
    *,
    limit: float = 60.0,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """One forward of one picture at each latent side: rows of the dense model, then of every operator.

    {operator, side, tokens, seconds, fastest, slowest, repeats, ratio, backend} and the facts, the dense model's with
    share and most as well.
    """
    rows: list[Row] = []
    for label in (DENSE, *operators):
        other = None if label == DENSE else _converted(model, *operators[label])
        for side in sorted(set(sides)):
            rows.append({"operator": label, "side": side, **_timed(model, other, side, repeats, limit)})
            if progress is not None:
                progress(rows[-1])
    return rows


def _timed(model: nn.Module, other: nn.Module | None, side: int, repeats: int, limit: float) -> Row:
    """The other's step beside the dense one; without another, the dense one's beside its attention alone."""
    weight, inputs = next(model.parameters()), costs.example(model, side)
    tokens = families.family(model).read(model, inputs)[0].tokens
    ours = _attention(model, inputs) if other is None else functools.partial(other, **inputs)
    with evaluating(nn.ModuleList([model] if other is None else [model, other])):
        found = costs.interleaved(
            {DENSE: functools.partial(model, **inputs), OTHER: ours}, repeats, limit, weight.device
        )
    dense, second = (statistics.median(found[name]) for name in (DENSE, OTHER))
    row = {"tokens": tokens, **costs.timed(found[DENSE if other is None else OTHER], dense)}
    if other is None:
        share = min(second / dense, 1.0)
        row |= {"share": share, "most": None if share == 1 else 1 / (1 - share)}
    backends = sorted({layer["backend"] for layer in surgery.describe(model if other is None else other)})
    return {**row, "backend": backends, **costs.facts(weight.dtype, weight.device)}


def _converted(model: nn.Module, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Of any weights and never restored: the copy of the original that is not kept is memory at large sizes."""
    return surgery.linearize(copy.deepcopy(model), name, keep_original=False, **options)


def _attention(model: nn.Module, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """The dense attention of all layers, one after the other, without projections."""
    weight = next(model.parameters())
    draw = torch.Generator().manual_seed(0)
    given = []
    with evaluating(model):
        grids = families.grids(model, **inputs)
    for layer, grid in zip(families.layers(model), grids, strict=True):
        shape = (1, layer.shape.heads, grid.tokens, layer.shape.head_dim)
        given.append([torch.randn(shape, generator=draw).to(weight) for _ in range(3)])

    def call() -> None:
        for q, k, v in given:
            F.scaled_dot_product_attention(q, k, v)

    return call
