"""The border to diffusers: where each family keeps its self-attention, and how a layer learns grid
and noise.

A `Family` says which layers there are, in the order the forward meets them, and reads grid and
noise from the arguments of the model's forward; a sibling is one more class and one more line in
`registry.FAMILIES`.
"""

from linattn.families.base import KEY, Context, Family, Layer, noise_level
from linattn.families.capture import apply, attention_map, capture, grids, joined
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
    "reattach",
    "rotated",
    "unwatch",
    "watch",
]
