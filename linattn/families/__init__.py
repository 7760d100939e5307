"""The border to diffusers: one file for each family of models.

A `Family` says which self-attentions there are, in the order in which the forward meets them, reads
grid and noise from the forward's arguments, and says how the model is conditioned. Another family
is one file and one line in `registry.FAMILIES`.
"""

from linattn.families.base import KEY, Context, Family, Layer, noise_level
from linattn.families.capture import (
    apply,
    attention_map,
    capture,
    grids,
    joined,
    qkv,
    require_map,
)
from linattn.families.passing import attentions, reattach, unwatch, watch
from linattn.families.processors import Processor, projections
from linattn.families.registry import FAMILIES, family, layers, model_of
from linattn.families.rotary import position, rotated

__all__ = [
    "FAMILIES",
    "KEY",
    "Context",
    "Family",
    "Layer",
    "Processor",
    "apply",
    "attention_map",
    "attentions",
    "capture",
    "family",
    "grids",
    "joined",
    "layers",
    "model_of",
    "noise_level",
    "position",
    "projections",
    "qkv",
    "reattach",
    "require_map",
    "rotated",
    "unwatch",
    "watch",
]
