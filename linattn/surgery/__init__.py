"""Replace the attention of a diffusers model: convert and restore it, look at it, keep what was learned in a folder.

`surgery.linearize`, `restore`, `save`, `load` and what looks at a model are reached from here, as from `linattn`.
"""

from linattn.surgery.convert import linearize, restore
from linattn.surgery.folder import CARD, WEIGHTS, load, save
from linattn.surgery.look import attention_map, attention_parameters, backends, describe, new_parameters

__all__ = [
    "CARD", "WEIGHTS", "attention_map", "attention_parameters", "backends", "describe", "linearize", "load",
    "new_parameters", "restore", "save",
]  # fmt: skip
