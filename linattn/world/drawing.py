"""A world of pictures drawn by formula from an exact description.

- A picture is a `Scene`: one or two `Thing`s before a `Background`. Nothing is random once it is described.
- Shapes are signed distances, edges are anti-aliased by coverage, so one description has one look at
  every resolution: 256 px averaged down to 64 is the picture at 64, up to anti-aliasing.
- `scene(seed, index)` depends on nothing else: shards, workers and machines agree on picture 17.
- Because the description is known, what a model drew for it can be marked right or wrong (judge.py).

Units: the picture is the unit square, x to the right, y down; pictures are (batch, 3, side, side) in [0, 1].
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Hues 60 degrees apart: the farthest six colours can be from one another.
COLOURS = {
    "red": (0.90, 0.10, 0.12),
    "yellow": (0.98, 0.85, 0.10),
    "green": (0.10, 0.65, 0.20),
    "cyan": (0.10, 0.80, 0.90),
    "blue": (0.12, 0.25, 0.90),
    "pink": (0.95, 0.25, 0.75),
}

# Two tones each, both far less saturated than any thing's colour.
TONES = {
    "white": ((0.97, 0.97, 0.95), (0.82, 0.82, 0.80)),
    "sand": ((0.87, 0.80, 0.66), (0.74, 0.65, 0.50)),
    "grey": ((0.58, 0.58, 0.60), (0.44, 0.44, 0.46)),
    "slate": ((0.30, 0.36, 0.42), (0.19, 0.24, 0.29)),
    "black": ((0.05, 0.05, 0.06), (0.17, 0.17, 0.18)),
}

RELATIONS = ("left of", "right of", "above", "below")
SMALL, LARGE = 0.23, 0.34  # a radius under the first is called small, one over the second large
SIDES = (16, 4096)
HELD_OUT = 1 << 30  # scenes from this index on are never trained on, by anything
PIXELS_AT_ONCE = 1 << 21  # bounds the temporaries of one render call to some tens of megabytes


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.70).abs() - 0.25


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.75


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.52


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + sector / 2, sector) - sector / 2
    radius = torch.hypot(x, y)
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    # The edge runs from the tip (1, 0) to the notch, at .42 of the radius and half a sector away.
    notch = (0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2))
    length = math.hypot(1 - notch[0], notch[1])
    return ((along - 1) * notch[1] + across * (1 - notch[0])) / length


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.30), torch.maximum(x - 0.30, y - 0.95))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x = x.abs()
    lobe = torch.hypot(x - 0.44, y + 0.32) - 0.50
    # From the tip (0, .9) along the lobe's tangent; closed above by a chord inside the lobes.
    body = torch.maximum(0.737 * x + 0.676 * (y - 0.90), 0.539 * x - 0.842 * (y + 0.50))
    return torch.minimum(lobe, body)


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.78 - torch.hypot(x - 0.48, y))


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    shaft = torch.maximum((x + 0.32).abs() - 0.62, y.abs() - 0.23)
    head = torch.maximum(-x + 0.05, 0.62 * (x - 0.98) + 0.785 * y.abs())
    return torch.minimum(shaft, head)


def _bow(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(x - 0.85, 0.853 * (y - 0.08) - 0.522 * x)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
    "bow": _bow,
}

LABELS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: float  # radius of the circle it is drawn in
    x: float
    y: float
    rotation: float  # radians

    @property
    def label(self) -> int:
        return LABELS.index(f"{self.colour} {self.shape}")

    def __str__(self) -> str:
        size = "small " if self.size < SMALL else "large " if self.size > LARGE else ""
        return f"{size}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Background:
    kind: str
    colour: str
    scale: float  # period of the pattern

    def __str__(self) -> str:
        return self.colour if self.kind == "plain" else f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: Background

    @property
    def label(self) -> int:
        """The class of the first thing: its shape and colour."""
        return self.things[0].label

    @property
    def relation(self) -> str | None:
        if len(self.things) < 2:
            return None
        return relation(*self.things)

    @property
    def caption(self) -> str:
        things = f" {self.relation} ".join(f"a {thing}" for thing in self.things)
        return f"{things} on {self.background}"


def relation(first: Any, second: Any) -> str:
    """How the first lies to the second, of anything with a place (x, y)."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return RELATIONS[0] if dx < 0 else RELATIONS[1]
    return RELATIONS[2] if dy < 0 else RELATIONS[3]


def label_parts(label: int) -> tuple[int, int]:
    """(shape, colour) indices of a class."""
    if not 0 <= label < len(LABELS):
        raise ValueError(f"label {label} is not one of the {len(LABELS)} classes 0..{len(LABELS) - 1}")
    return divmod(label, len(COLOURS))


def scene(seed: int, index: int, objects: int = 1, label: int | None = None) -> Scene:
    """Scene `index` of the world `seed`; `label` fixes the first thing's shape and colour."""
    if objects not in (1, 2):
        raise ValueError(f"a scene has 1 or 2 objects, not {objects}")
    draw = random.Random((seed << 32) + index)
    background = Background(draw.choice(tuple(BACKGROUNDS)), draw.choice(tuple(TONES)), draw.uniform(0.20, 0.36))
    shape, colour = label_parts(draw.randrange(len(LABELS)) if label is None else label)
    first = (tuple(SHAPES)[shape], tuple(COLOURS)[colour])
    if objects == 1:
        size = draw.uniform(0.20, 0.42)
        x, y = (draw.uniform(size, 1 - size) for _ in range(2))
        return Scene((Thing(*first, size, x, y, draw.uniform(-0.4, 0.4)),), background)
    return Scene(_pair(draw, first), background)


def _pair(draw: random.Random, first: tuple[str, str]) -> tuple[Thing, Thing]:
    """Two things side by side or one above the other, far enough apart that the relation is beyond doubt."""
    second = (draw.choice(tuple(SHAPES)), draw.choice(tuple(COLOURS)))
    sizes = [draw.uniform(0.15, 0.25) for _ in range(2)]
    near = draw.uniform(sizes[0], 1 - 2 * sizes[1] - sizes[0])
    far = draw.uniform(near + sum(sizes), 1 - sizes[1])
    along = [near, far]
    if draw.random() < 0.5:
        along = [1 - place for place in along]
    middle = draw.uniform(0.3, 0.7)
    limit = 0.45 * abs(along[0] - along[1])
    across = [min(max(middle + draw.uniform(-limit, limit) / 2, size), 1 - size) for size in sizes]
    places = list(zip(along, across, strict=True))
    if draw.random() < 0.5:
        places = [(y, x) for x, y in places]
    names = (first, second)
    return tuple(
        Thing(*name, size, *place, draw.uniform(-0.4, 0.4))
        for name, size, place in zip(names, sizes, places, strict=True)
    )


def scenes(count: int, seed: int, objects: int = 1, start: int = 0) -> list[Scene]:
    return [scene(seed, index, objects) for index in range(start, start + count)]


def render(scenes: Sequence[Scene], side: int) -> Tensor:
    """Pictures (batch, 3, side, side) in [0, 1]."""
    if not SIDES[0] <= side <= SIDES[1]:
        raise ValueError(f"a side of {side} px is outside {SIDES[0]}..{SIDES[1]}")
    step = max(1, PIXELS_AT_ONCE // side**2)
    parts = [_render(scenes[start : start + step], side) for start in range(0, len(scenes), step)]
    return torch.cat(parts) if parts else torch.empty(0, 3, side, side)


def _render(scenes: Sequence[Scene], side: int) -> Tensor:
    ticks = (torch.arange(side) + 0.5) / side
    y, x = ticks[:, None], ticks[None, :]  # (side, 1), (1, side)
    picture = _draw_backgrounds([each.background for each in scenes], x, y, side)
    for slot in range(max(len(each.things) for each in scenes)):
        for shape, distance in SHAPES.items():
            rows = [i for i, each in enumerate(scenes) if len(each.things) > slot and each.things[slot].shape == shape]
            if not rows:
                continue
            things = [scenes[row].things[slot] for row in rows]
            cover = _cover_of(things, distance, x, y, side)[:, None]  # (rows, 1, side, side)
            paint = torch.tensor([COLOURS[thing.colour] for thing in things])[:, :, None, None]
            picture[rows] = torch.lerp(picture[rows], paint, cover)
    return picture


def _cover_of(things: list[Thing], distance: Callable, x: Tensor, y: Tensor, side: int) -> Tensor:
    """The share of every pixel that each thing covers: (things, side, side)."""
    size, cx, cy, turn = (
        torch.tensor([getattr(thing, name) for thing in things])[:, None, None]
        for name in ("size", "x", "y", "rotation")
    )
    dx, dy = (x - cx) / size, (y - cy) / size
    local = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
    return _coverage(distance(*local) * size * side)


def _coverage(pixels: Tensor) -> Tensor:
    """Coverage of a pixel whose centre lies `pixels` outside a straight edge."""
    return (0.5 - pixels).clamp(0, 1)


def _wave(phase: Tensor, scale: Tensor, side: int) -> Tensor:
    """0 and 1 alternating, each half a period wide: anti-aliased distance to the nearest switch."""
    place = torch.remainder(phase, 1.0)
    return _coverage(((place - 0.5).abs() - 0.25) * scale * side)


def _plain(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    return torch.zeros_like(x * y * scale)


def _stripes(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    return _wave((x + y) * math.sqrt(0.5) / scale, scale, side)


def _checks(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    across, down = _wave(x / scale, scale, side), _wave(y / scale, scale, side)
    return across + down - 2 * across * down


def _dots(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    dx, dy = (torch.remainder(axis / scale, 1.0) - 0.5 for axis in (x, y))
    return _coverage((torch.hypot(dx, dy) - 0.3) * scale * side)


BACKGROUNDS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
}


def _draw_backgrounds(backgrounds: list[Background], x: Tensor, y: Tensor, side: int) -> Tensor:
    picture = torch.empty(len(backgrounds), 3, side, side)
    for kind, pattern in BACKGROUNDS.items():
        rows = [i for i, each in enumerate(backgrounds) if each.kind == kind]
        if not rows:
            continue
        scale = torch.tensor([backgrounds[row].scale for row in rows])[:, None, None]
        tones = torch.tensor([TONES[backgrounds[row].colour] for row in rows])[..., None, None]
        mask = pattern(x, y, scale, side)[:, None]  # (rows, 1, side, side)
        picture[rows] = torch.lerp(tones[:, 0].expand(-1, -1, side, side), tones[:, 1], mask)
    return picture
