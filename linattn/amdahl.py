"""What a faster attention gives a whole step, and the most it could give: Amdahl's share beside the step's own time.

- `share`: how much of the dense model's step its attention takes, which is the attention of all layers timed alone on
  tensors of its size; `most` = 1 / (1 - share) is the step without it, as if the replacement cost nothing.
- Converted models are not trained: weights have no part in the time.
- Dense, alone and converted are timed in turns, so that a busy minute hits all alike.
"""

import copy
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from linattn import costs, families, surgery
from linattn.costs import Row
from linattn.sampling import evaluating

DENSE, ALONE = "dense", "its attention alone"


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
    """One forward of one picture at each latent side: a row for the dense model and one for every operator.

    {operator, side, tokens, seconds, fastest, slowest, repeats, ratio, share, most, backend} and the facts; share and
    most are the dense model's.
    """
    models = {DENSE: model} | {label: _converted(model, *operators[label]) for label in operators}
    weight = next(model.parameters())
    rows: list[Row] = []
    with evaluating(nn.ModuleList(models.values())):
        for side in sorted(set(sides)):
            inputs = costs.example(model, side)
            tokens = families.family(model).read(model, inputs)[0].tokens
            calls = {label: functools.partial(each, **inputs) for label, each in models.items()}
            found = costs.interleaved(calls | {ALONE: _attention(model, tokens)}, repeats, limit, weight.device)
            dense = statistics.median(found[DENSE])
            share = min(statistics.median(found.pop(ALONE)) / dense, 1.0)
            for label, seconds in found.items():
                rows.append(
                    {
                        "operator": label,
                        "side": side,
                        "tokens": tokens,
                        **costs.timed(seconds, dense),
                        "share": share,
                        "most": None if share == 1 else 1 / (1 - share),
                        "backend": sorted({row["backend"] for row in surgery.describe(models[label])}),
                        **costs.facts(weight.dtype, weight.device),
                    }
                )
                if progress is not None:
                    progress(rows[-1])
    return rows


def _converted(model: nn.Module, name: str, options: Mapping[str, Any]) -> nn.Module:
    return surgery.linearize(copy.deepcopy(model), name, keep_original=False, **options)


def _attention(model: nn.Module, tokens: int) -> Callable[[], None]:
    """The dense attention of all layers, one after the other, without projections."""
    weight = next(model.parameters())
    draw = torch.Generator().manual_seed(0)
    given = []
    for layer in families.layers(model):
        shape = (1, layer.shape.heads, tokens, layer.shape.head_dim)
        given.append([torch.randn(shape, generator=draw).to(weight) for _ in range(3)])

    def call() -> None:
        for q, k, v in given:
            F.scaled_dot_product_attention(q, k, v)

    return call
