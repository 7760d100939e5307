"""Replace the attention of a diffusers model: convert, restore and inspect it, save a student.

The public functions of the package are available here, as they are from `linattn`.
"""

from linattn.surgery.card import CARD, WEIGHTS
from linattn.surgery.convert import linearize, restore
from linattn.surgery.folder import load, save
from linattn.surgery.look import (
    attention_map,
    attention_parameters,
    backends,
    describe,
    new_parameters,
)
from linattn.surgery.push import push

__all__ = [
    "CARD",
    "WEIGHTS",
    "attention_map",
    "attention_parameters",
    "backends",
    "describe",
    "linearize",
    "load",
    "new_parameters",
    "push",
    "restore",
    "save",
]
