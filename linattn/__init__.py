"""linattn: replace the quadratic self-attention of a pre-trained diffusion model, distil it, and
compare honestly.

    import linattn
    linattn.linearize(pipe, "clear", radius=8)  # in place, any supported pipeline or model
    linattn.save(pipe, "my-student")            # the replaced layers and linattn.json
    linattn.load(fresh_pipe, "my-student")      # a folder or a hub id
    linattn.push("my-student", "me/my-student")  # to the hub, with a model card
    linattn.restore(pipe)                       # the original, bit for bit
    linattn.reattach(pipe)                      # after diffusers took processors away
    linattn.plan(teacher, samples, budget=0.5, candidates=...)  # which layer gets which operator
    linattn.upscale(pipe, pictures, 2, 0.4, prompts=captions)  # drawn again at twice the side
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linattn.attention import OPERATORS, register
    from linattn.attention.grid import Grid
    from linattn.families import reattach
    from linattn.planning import plan
    from linattn.redraw import upscale
    from linattn.surgery import attention_map, describe, linearize, load, push, restore, save

__version__ = "0.1.0"  # the one place; pyproject.toml reads it, CHANGELOG.md says what is in it

# Found when first asked for: importing the package alone costs nothing, and neither torch nor
# diffusers is loaded.
_HOMES = {
    "OPERATORS": "linattn.attention",
    "register": "linattn.attention",
    "reattach": "linattn.families",
    "Grid": "linattn.attention.grid",
    "plan": "linattn.planning",
    "upscale": "linattn.redraw",
    **dict.fromkeys(
        ("attention_map", "describe", "linearize", "load", "push", "restore", "save"),
        "linattn.surgery",
    ),
}
# Modules that notebooks ask this package for, as in `from linattn import costs`: the room that each
# lies in.
_ROOMS = {
    "amdahl": "evaluation",
    "anatomy": "evaluation",
    "costs": "evaluation",
    "gpu": "report",
    "steps": "report",
}

__all__ = [
    "OPERATORS",
    "Grid",
    "attention_map",
    "describe",
    "linearize",
    "load",
    "plan",
    "push",
    "reattach",
    "register",
    "restore",
    "save",
    "upscale",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"linattn.{_ROOMS[name]}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
