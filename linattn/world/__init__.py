"""The small world that everything here is trained and judged on: its pictures, its words, and who marks them.

`from linattn import world` gives what `drawing.py` draws with; whoever marks pictures imports judge, pairs or marks.
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
    "BACKGROUNDS", "COLOURS", "HELD_OUT", "LABELS", "LARGE", "PIXELS_AT_ONCE", "RELATIONS", "SHAPES", "SIDES", "SMALL",
    "TONES", "Background", "Scene", "Thing", "label_parts", "relation", "render", "scene", "scenes",
]  # fmt: skip
