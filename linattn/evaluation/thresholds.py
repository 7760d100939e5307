"""Measure how many keys matter to each head: LATTE's thresholds (arXiv 2404.07519) as a diagnostic.

A key matters to a query when its weight is at least a share g of the row's largest. LATTE trains a
g for every head and drops the rest; the share of keys that stays says which heads tolerate a sparse
operator, and at which noise.
"""

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from linattn.attention.grid import Grid
from linattn.conditions import Prompts
from linattn.evaluation import diagnostics
from linattn.evaluation.distance import LEVELS
from linattn.reader import between, checked

THRESHOLDS = (1e-3, 1e-2, 1e-1)


@checked(**diagnostics.MAPS, threshold=between(0, 1))
def kept_keys(maps: Tensor, threshold: float) -> Tensor:
    """Return the share of keys whose weight is at least `threshold` of their row's largest.

    It is (batch, heads), the mean over the rows.
    """
    weights = diagnostics.distributions(maps)
    kept = weights >= threshold * weights.amax(-1, keepdim=True)
    return kept.to(weights.dtype).mean((2, 3))


@checked(thresholds=between(0, 1))
def by_head(
    teacher: Any,
    latents: Tensor,
    prompts: Prompts,
    levels: Sequence[float] = LEVELS,
    thresholds: Sequence[float] = THRESHOLDS,
    **options: Any,
) -> list[dict[str, Any]]:
    """Measure the kept keys of every layer, head and noise level, in rows as `anatomy` has them.

    A row's measure is "kept at 0.01" for a threshold of 0.01. `options` are those of
    `diagnostics.anatomy`, such as layers and model.
    """
    measures = {
        f"kept at {threshold:g}": functools.partial(kept_keys, threshold=threshold)
        for threshold in thresholds
    }

    def measured(grid: Grid) -> dict[str, Any]:
        return measures

    return diagnostics.anatomy(teacher, latents, prompts, levels, measured=measured, **options)
