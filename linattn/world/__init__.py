"""Define the small world that all models here are trained and judged on.

`from linattn import world` gives the names of `drawing.py`. To mark pictures, import judge, pairs
or marks.
"""

from linattn.world.drawing import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    LABELS,
    LARGE,
    PIXELS_AT_ONCE,
    RELATIONS,
    SHAPES,
    SIDES,
    SMALL,
    TONES,
    Background,
    Scene,
    Thing,
    label_parts,
    relation,
    render,
    scene,
    scenes,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT",
    "LABELS",
    "LARGE",
    "PIXELS_AT_ONCE",
    "RELATIONS",
    "SHAPES",
    "SIDES",
    "SMALL",
    "TONES",
    "Background",
    "Scene",
    "Thing",
    "label_parts",
    "relation",
    "render",
    "scene",
    "scenes",
]
