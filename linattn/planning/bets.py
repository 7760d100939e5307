"""Rank layers by diagnostics: those first whose attention is what an operator bets on."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from linattn.attention.grid import Grid
from linattn.evaluation import diagnostics
from linattn.planning.candidates import Candidate

# The measure of attention that an operator bets on, and whether more of it is better. Of an
# operator that is not named, diagnostics say nothing.
BETS = {
    "clear": ("share", True),
    "linfusion": ("rank", False),
    "lit": ("similarity", True),
    "mediator": ("redundancy", False),
}
Rankings = dict[str, list[int]]  # by label: layers from the one that is replaced first


def rankings(
    teacher: Any,
    samples: Any,
    candidates: Mapping[str, Candidate],
    levels: Sequence[float],
    pictures: int,
    seed: int,
) -> Rankings:
    """Measure the teacher's attention, and rank its layers for each candidate.

    Args:
        teacher: whose attention is measured.
        samples: latents with prompts that it drew.
        candidates: by label.
        levels: noise levels over which the measures are averaged.
        pictures: samples over which they are averaged.
        seed: of the noise.
    """
    bets = {candidate.operator for candidate in candidates.values()} & BETS.keys()
    needed = [BETS[name][0] for name in sorted(bets)]
    if not needed:
        return {}

    def measured(grid: Grid) -> dict[str, Callable[[Tensor], Tensor]]:
        every = diagnostics.measures(grid)
        return {name: every[name] for name in needed}

    latents, prompts = samples.first(min(pictures, len(samples)))
    rows = diagnostics.anatomy(teacher, latents, prompts, levels, seed=seed, measured=measured)
    return {label: ranking(candidate.operator, rows) for label, candidate in candidates.items()}


def ranking(operator: str, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the layers from the one that has most of what an operator bets on.

    Args:
        operator: its name; no layer is ranked for one without a bet.
        rows: those of `diagnostics.anatomy`.
    """
    measure, more = BETS.get(operator, ("", False))
    by_layer: dict[int, list[float]] = {}
    for row in rows:
        # a layer with one head has no similarity of heads
        if (row["measure"], row["head"]) == (measure, None) and row["value"] is not None:
            by_layer.setdefault(row["layer"], []).append(row["value"])
    return sorted(by_layer, key=lambda layer: fmean(by_layer[layer]), reverse=more)
