"""Draw pictures by formula from an exact description.

- A `Scene` describes a picture: one or two `Thing`s before a `Background`. Drawing a scene is
  deterministic.
- Shapes are signed distances and edges are anti-aliased by coverage, so a scene looks the same at
  every resolution: 256 px averaged down to 64 is the picture at 64, up to anti-aliasing.
- `scene(seed, index)` depends on its arguments alone, so shards, workers and machines agree on
  picture 17.
- Because the description is known, a model's picture of it can be marked right or wrong (judge.py).

Units: the picture is the unit square, x to the right, y down. Pictures are (batch, 3, side, side)
in [0, 1].
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linattn.reader import between, checked, typed

# The hues are 60 degrees apart, as far as six colours can be from one another.
COLOURS = {
    "red": (0.90, 0.10, 0.12),
    "yellow": (0.98, 0.85, 0.10),
    "green": (0.10, 0.65, 0.20),
    "cyan": (0.10, 0.80, 0.90),
    "blue": (0.12, 0.25, 0.90),
    "pink": (0.95, 0.25, 0.75),
}

# Each background has two tones, both far less saturated than the colour of any thing.
TONES = {
    "white": ((0.97, 0.97, 0.95), (0.82, 0.82, 0.80)),
    "sand": ((0.87, 0.80, 0.66), (0.74, 0.65, 0.50)),
    "grey": ((0.58, 0.58, 0.60), (0.44, 0.44, 0.46)),
    "slate": ((0.30, 0.36, 0.42), (0.19, 0.24, 0.29)),
    "black": ((0.05, 0.05, 0.06), (0.17, 0.17, 0.18)),
}

RELATIONS = ("left of", "right of", "above", "below")
SMALL, LARGE = 0.23, 0.34  # a radius under SMALL is called small, one over LARGE large
SIDES = (16, 4096)
HELD_OUT = 1 << 30  # no model is trained on scenes from this index on
MOST = 10**7  # scenes that are listed at once
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
    # The edge runs from the tip (1, 0) to the notch, which is half a sector away at .42 of the
    # radius.
    notch = (0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2))
    length = math.hypot(1 - notch[0], notch[1])
    return ((along - 1) * notch[1] + across * (1 - notch[0])) / length


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.30), torch.maximum(x - 0.30, y - 0.95))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x = x.abs()
    lobe = torch.hypot(x - 0.44, y + 0.32) - 0.50
    # The body runs from the tip (0, .9) along the lobe's tangent. A chord inside the lobes closes
    # it above.
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
    """Describe one thing of a scene."""

    shape: str  # one of SHAPES
    colour: str  # one of COLOURS
    size: float  # radius of the circle it is drawn in
    x: float  # of its centre, from the left, in [0, 1]
    y: float  # of its centre, from above, in [0, 1]
    rotation: float  # radians

    @property
    def label(self) -> int:
        return LABELS.index(f"{self.colour} {self.shape}")

    def __str__(self) -> str:
        size = "small " if self.size < SMALL else "large " if self.size > LARGE else ""
        return f"{size}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Background:
    """Describe what the things of a scene stand before."""

    kind: str  # one of BACKGROUNDS
    colour: str  # one of TONES
    scale: float  # period of the pattern

    def __str__(self) -> str:
        return self.colour if self.kind == "plain" else f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Describe a picture of the world by what it shows."""

    things: tuple[Thing, ...]  # one or two, the first named first
    background: Background  # what they stand before

    @property
    def label(self) -> int:
        """Return the class of the first thing: its shape and colour."""
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
    """Name the relation of the first to the second; both have a position (x, y).

    Args:
        first: a thing, or whatever has x and y.
        second: another of them.
    """
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return RELATIONS[0] if dx < 0 else RELATIONS[1]
    return RELATIONS[2] if dy < 0 else RELATIONS[3]


@checked(label=typed())
def label_parts(label: int) -> tuple[int, int]:
    """Return the (shape, colour) indices of a class.

    Args:
        label: the number of a class, a position in `LABELS`.
    """
    if not 0 <= label < len(LABELS):
        raise ValueError(
            f"label {label} is not one of the {len(LABELS)} classes 0..{len(LABELS) - 1}"
        )
    return divmod(label, len(COLOURS))


@checked(seed=typed(), index=between(0), objects=typed(), label=typed())
def scene(seed: int, index: int, objects: int = 1, label: int | None = None) -> Scene:
    """Return one scene of a world.

    Args:
        seed: the number of the world.
        index: the number of the scene; seed and index decide everything that is left open.
        objects: how many things it shows, 1 or 2.
        label: the class of its first thing; None draws one.
    """
    if objects not in (1, 2):
        raise ValueError(f"a scene has 1 or 2 objects, not {objects}")
    generator = random.Random((seed << 32) + index)
    kind, tone = generator.choice(tuple(BACKGROUNDS)), generator.choice(tuple(TONES))
    background = Background(kind, tone, generator.uniform(0.20, 0.36))
    shape, colour = label_parts(generator.randrange(len(LABELS)) if label is None else label)
    first = (tuple(SHAPES)[shape], tuple(COLOURS)[colour])
    if objects == 1:
        size = generator.uniform(0.20, 0.42)
        x, y = (generator.uniform(size, 1 - size) for _ in range(2))
        return Scene((Thing(*first, size, x, y, generator.uniform(-0.4, 0.4)),), background)
    return Scene(_two_things(generator, first), background)


def _two_things(generator: random.Random, first: tuple[str, str]) -> tuple[Thing, Thing]:
    """Place two things side by side or one above the other, so that their relation is clear."""
    second = (generator.choice(tuple(SHAPES)), generator.choice(tuple(COLOURS)))
    sizes = [generator.uniform(0.15, 0.25) for _ in range(2)]
    near = generator.uniform(sizes[0], 1 - 2 * sizes[1] - sizes[0])
    far = generator.uniform(near + sum(sizes), 1 - sizes[1])
    along = [near, far]
    if generator.random() < 0.5:
        along = [1 - coordinate for coordinate in along]
    middle = generator.uniform(0.3, 0.7)
    limit = 0.45 * abs(along[0] - along[1])
    across = []
    for size in sizes:
        coordinate = middle + generator.uniform(-limit, limit) / 2
        across.append(min(max(coordinate, size), 1 - size))
    positions = list(zip(along, across, strict=True))
    if generator.random() < 0.5:
        positions = [(y, x) for x, y in positions]
    rotations = [generator.uniform(-0.4, 0.4) for _ in range(2)]
    first_thing = Thing(*first, sizes[0], *positions[0], rotations[0])
    second_thing = Thing(*second, sizes[1], *positions[1], rotations[1])
    return first_thing, second_thing


@checked(count=between(0, MOST), start=between(0))
def scenes(count: int, seed: int, objects: int = 1, start: int = 0) -> list[Scene]:
    """Return scenes of a world that follow one another.

    Args:
        count: how many scenes.
        seed: the number of the world.
        objects: how many things each shows, 1 or 2.
        start: the number of the first scene.
    """
    return [scene(seed, index, objects) for index in range(start, start + count)]


@checked(scenes=typed(empty=True), side=between(*SIDES))
def render(scenes: Sequence[Scene], side: int) -> Tensor:
    """Draw the scenes as pictures (batch, 3, side, side) in [0, 1].

    Args:
        scenes: what to draw.
        side: height and width of the pictures in px.
    """
    batch = max(1, PIXELS_AT_ONCE // side**2)
    batches = [
        _render_batch(scenes[start : start + batch], side) for start in range(0, len(scenes), batch)
    ]
    return torch.cat(batches) if batches else torch.empty(0, 3, side, side)


def _render_batch(scenes: Sequence[Scene], side: int) -> Tensor:
    """Draw the backgrounds, then the first things over them, then the second."""
    ticks = (torch.arange(side) + 0.5) / side
    y, x = ticks[:, None], ticks[None, :]  # (side, 1), (1, side)
    pictures = _draw_backgrounds([scene.background for scene in scenes], x, y, side)
    for slot in range(max(len(scene.things) for scene in scenes)):
        slot_things = {
            index: scene.things[slot]
            for index, scene in enumerate(scenes)
            if len(scene.things) > slot
        }
        for shape, distance in SHAPES.items():
            indices = [index for index, thing in slot_things.items() if thing.shape == shape]
            if not indices:
                continue
            things = [slot_things[index] for index in indices]
            coverage = _thing_coverage(things, distance, x, y, side)[:, None]
            paint = torch.tensor([COLOURS[thing.colour] for thing in things])[:, :, None, None]
            pictures[indices] = torch.lerp(pictures[indices], paint, coverage)
    return pictures


def _thing_coverage(
    things: list[Thing], distance: Callable, x: Tensor, y: Tensor, side: int
) -> Tensor:
    """Return the share of every pixel that each thing covers: (things, side, side)."""
    size = torch.tensor([thing.size for thing in things])[:, None, None]
    centre_x = torch.tensor([thing.x for thing in things])[:, None, None]
    centre_y = torch.tensor([thing.y for thing in things])[:, None, None]
    rotation = torch.tensor([thing.rotation for thing in things])[:, None, None]
    dx, dy = (x - centre_x) / size, (y - centre_y) / size
    local_x = dx * rotation.cos() + dy * rotation.sin()
    local_y = dy * rotation.cos() - dx * rotation.sin()
    return _edge_coverage(distance(local_x, local_y) * size * side)


def _edge_coverage(pixels: Tensor) -> Tensor:
    """Return the coverage of a pixel whose centre lies `pixels` outside a straight edge."""
    return (0.5 - pixels).clamp(0, 1)


def _wave(phase: Tensor, scale: Tensor, side: int) -> Tensor:
    """Alternate 0 and 1, each half a period wide, anti-aliased by the distance to a switch."""
    position = torch.remainder(phase, 1.0)
    return _edge_coverage(((position - 0.5).abs() - 0.25) * scale * side)


def _plain(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    return torch.zeros_like(x * y * scale)


def _stripes(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    return _wave((x + y) * math.sqrt(0.5) / scale, scale, side)


def _checks(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    across, down = _wave(x / scale, scale, side), _wave(y / scale, scale, side)
    return across + down - 2 * across * down


def _dots(x: Tensor, y: Tensor, scale: Tensor, side: int) -> Tensor:
    dx, dy = (torch.remainder(axis / scale, 1.0) - 0.5 for axis in (x, y))
    return _edge_coverage((torch.hypot(dx, dy) - 0.3) * scale * side)


BACKGROUNDS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
}


def _draw_backgrounds(backgrounds: list[Background], x: Tensor, y: Tensor, side: int) -> Tensor:
    """Draw the backgrounds as pictures (backgrounds, 3, side, side)."""
    pictures = torch.empty(len(backgrounds), 3, side, side)
    for kind, pattern in BACKGROUNDS.items():
        indices = [index for index, background in enumerate(backgrounds) if background.kind == kind]
        if not indices:
            continue
        scale = torch.tensor([backgrounds[index].scale for index in indices])[:, None, None]
        tones = torch.tensor([TONES[backgrounds[index].colour] for index in indices])
        first, second = tones[..., None, None].unbind(1)  # (indices, 3, 1, 1)
        mask = pattern(x, y, scale, side)[:, None]  # (indices, 1, side, side)
        pictures[indices] = torch.lerp(first.expand(-1, -1, side, side), second, mask)
    return pictures
