"""Measure what a faster attention gives a whole step, and the most it could give by Amdahl's law.

- `share` is the fraction of the dense model's step that its attention takes. The attention of all
  layers is timed alone on tensors of the model's size. `most` = 1 / (1 - share) is the speed-up if
  the replacement cost nothing.
- Converted models are not trained, because the time does not depend on the weights.
- Each converted model is timed in turns with the dense model, so that a busy minute hits both. Only
  two models must fit in memory at a time. Shares come from turns of the dense step and its
  attention.
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

DENSE, REPLACED = "dense", "replaced"


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
    """Time one forward of one picture at each latent side, dense and then with every operator.

    Each returned row is {operator, side, tokens, seconds, fastest, slowest, repeats, ratio,
    backend} and the facts. The dense model's rows also have share and most.
    """
    timings: list[Row] = []
    for label in (DENSE, *operators):
        converted = None if label == DENSE else _convert(model, *operators[label])
        for side in sorted(set(sides)):
            if converted is None:
                timing = _time_dense(model, side, repeats, limit)
            else:
                timing = _time_converted(model, converted, side, repeats, limit)
            timings.append({"operator": label, "side": side, **timing})
            if progress is not None:
                progress(timings[-1])
    return timings


def _time_dense(model: nn.Module, side: int, repeats: int, limit: float) -> Row:
    """Time the dense step beside its attention alone, and return the attention's share."""
    inputs = costs.example(model, side)
    calls = {DENSE: functools.partial(model, **inputs), REPLACED: _dense_attention(model, inputs)}
    with evaluating(model):
        seconds = costs.interleaved(calls, repeats, limit, next(model.parameters()).device)
    step, attention = statistics.median(seconds[DENSE]), statistics.median(seconds[REPLACED])
    share = min(attention / step, 1.0)
    most = None if share == 1 else 1 / (1 - share)
    timing = costs.timed(seconds[DENSE], step)
    return {**_described(model, inputs), **timing, "share": share, "most": most}


def _time_converted(
    model: nn.Module, converted: nn.Module, side: int, repeats: int, limit: float
) -> Row:
    """Time a converted model's step beside the dense step."""
    inputs = costs.example(model, side)
    calls = {
        DENSE: functools.partial(model, **inputs),
        REPLACED: functools.partial(converted, **inputs),
    }
    with evaluating(nn.ModuleList([model, converted])):
        seconds = costs.interleaved(calls, repeats, limit, next(model.parameters()).device)
    timing = costs.timed(seconds[REPLACED], statistics.median(seconds[DENSE]))
    return {**_described(converted, inputs), **timing}


def _described(model: nn.Module, inputs: Mapping[str, Any]) -> Row:
    """Return the tokens, the kernels' paths and the facts of a timing."""
    weight = next(model.parameters())
    grid = families.family(model).grid(model, inputs)
    backends = sorted({layer["backend"] for layer in surgery.describe(model)})
    return {
        "tokens": grid.tokens,
        "backend": backends,
        **costs.facts(weight.dtype, weight.device),
    }


def _convert(model: nn.Module, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a converted copy of the model with untrained operators.

    The copy is never restored, so it does not keep the original attention, which takes memory at
    large sizes.
    """
    return surgery.linearize(copy.deepcopy(model), name, keep_original=False, **options)


def _dense_attention(model: nn.Module, inputs: Mapping[str, Any]) -> Callable[[], None]:
    """Return a call that runs the dense attention of all layers, one after the other, without
    projections.
    """
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    layer_inputs = []
    with evaluating(model):
        grids = families.grids(model, **inputs)
    for layer, grid in zip(families.layers(model), grids, strict=True):
        shape = (1, layer.shape.heads, grid.tokens, layer.shape.head_dim)
        q, k, v = (torch.randn(shape, generator=generator).to(weight) for _ in range(3))
        layer_inputs.append((q, k, v))

    def call() -> None:
        for q, k, v in layer_inputs:
            F.scaled_dot_product_attention(q, k, v)

    return call
