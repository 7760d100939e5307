"""Choose how a pipeline is told what to draw.

Prompts are labels (DiT) or captions; each family's file says how its own become arguments of a
forward. Code that knows no family joins, repeats and drops conditioning with the functions here.
"""

from collections.abc import Mapping
from typing import Any

from linattn.families.conditions import (
    Conditioning,
    Conditions,
    Prompts,
    as_long,
    cast,
    dropped,
    joined,
    repeated,
    taken,
)
from linattn.families.dit import NULL_CLASS, Labels
from linattn.families.registry import family

__all__ = [
    "NULL_CLASS",
    "Conditioning",
    "Conditions",
    "Labels",
    "Prompts",
    "as_long",
    "cast",
    "dropped",
    "joined",
    "of",
    "repeated",
    "taken",
]


def of(pipe: Any, card: Mapping[str, Any] | None = None) -> Conditions:
    """Return the conditions of a pipeline, chosen by the family of its model."""
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if model is None or getattr(pipe, "vae", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no denoising model and VAE; pass a Teacher or a pipeline"
        )
    return family(model).conditions_of(pipe, card or {})
