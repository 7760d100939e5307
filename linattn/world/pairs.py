"""Marks for pictures of two things: each is found by its colour's saturation, cut out, and shown to the judge alone.

- Things are far more saturated than any background, so a picture falls into patches; the two largest are the things.
- Which patch is which is read from shapes and colours, whichever reading has more of the four right; the relation is
  judged by that reading. A picture in which two patches cannot be found is wrong in all.
- How often true pictures are marked right bounds what any model can reach; captions of other pictures give chance.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals
from linattn.world import drawing

SATURATED = 0.45  # largest minus smallest of red, green, blue: backgrounds reach .24, the palest thing has .55
LEAST = 0.004  # of the picture's area, below which a patch is a speck
NAMES = ("two_shapes", "two_colours", "relation")
SHIFTS = 8  # captions of how many other pictures chance is the mean of: one said 50 % where eight say 37
FRAME = 1.4  # sides of the cut, in sides of the patch's box (right shapes of true pictures: 99.8 %; 2.4: 83 %)


@dataclass(frozen=True)
class Patch:
    x: float  # centre, in sides of the picture
    y: float
    side: float  # of its box


def patches(picture: Tensor, most: int = 2) -> list[Patch]:
    """The largest saturated patches of a picture (3, side, side) in [0, 1], the largest first."""
    mask = picture.amax(0) - picture.amin(0) > SATURATED
    labels = _components(mask)
    found = []
    for number in labels.unique()[1:]:  # 0 is background
        y, x = (labels == number).nonzero(as_tuple=True)
        if len(y) >= LEAST * mask.numel():
            found.append((len(y), y, x))
    found.sort(key=lambda entry: -entry[0])
    return [_patch(y, x, mask.shape[0]) for _, y, x in found[:most]]


def _patch(y: Tensor, x: Tensor, side: int) -> Patch:
    edges = [(int(each.min()), int(each.max()) + 1) for each in (x, y)]
    longest = max(end - start for start, end in edges)
    return Patch(*((start + end) / 2 / side for start, end in edges), longest / side)


def _components(mask: Tensor) -> Tensor:
    """A number for each connected patch, 0 outside: the largest index spreads until nothing changes."""
    labels = torch.arange(1, mask.numel() + 1, device=mask.device).view(mask.shape).float() * mask
    while True:
        spread = F.max_pool2d(labels[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


def cut(picture: Tensor, patch: Patch, side: int = 64) -> Tensor:
    """The patch in the middle of a picture of its own; the border's colour goes on beyond the border."""
    half = patch.side * FRAME / 2
    ticks = torch.linspace(-1, 1, side, device=picture.device) * half
    grid = torch.stack(torch.meshgrid(patch.y + ticks, patch.x + ticks, indexing="ij")[::-1], 2) * 2 - 1
    how = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(picture[None], grid[None], **how)[0]


@torch.no_grad()
def marks(judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]) -> Tensor:
    """(pictures, 3) booleans: both shapes, both colours, the relation."""
    found = [patches(picture) for picture in pictures]
    cuts = [cut(picture, patch) for picture, own in zip(pictures, found, strict=True) for patch in own]
    seen = judge(torch.stack(cuts)) if cuts else None
    shapes, colours = (each.argmax(1).tolist() for each in (seen.shape, seen.colour)) if cuts else ([], [])
    rows, start = [], 0
    for own, scene in zip(found, scenes, strict=True):
        told = list(zip(own, shapes[start : start + len(own)], colours[start : start + len(own)], strict=True))
        start += len(own)
        rows.append(_right(told, scene))
    return torch.tensor(rows, dtype=torch.bool).view(-1, 3)


def _right(told: list[tuple[Patch, int, int]], scene: drawing.Scene) -> tuple[bool, bool, bool]:
    if len(told) < 2:
        return False, False, False
    return max((_reading(pair, scene) for pair in (told, told[::-1])), key=lambda reading: (reading[0], reading[3]))[1:]


def _reading(told: list[tuple[Patch, int, int]], scene: drawing.Scene) -> tuple[int, bool, bool, bool]:
    """How much is right, and what, if the first patch is the first thing."""
    shapes = [
        tuple(drawing.SHAPES)[shape] == thing.shape for (_, shape, _), thing in zip(told, scene.things, strict=True)
    ]
    colours = [
        tuple(drawing.COLOURS)[colour] == thing.colour for (*_, colour), thing in zip(told, scene.things, strict=True)
    ]
    relation = drawing.relation(told[0][0], told[1][0]) == scene.relation
    return sum(shapes) + sum(colours), all(shapes), all(colours), relation


def shares(judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]) -> dict[str, dict[str, Any]]:
    """How many pictures are right in each mark, with Wilson's interval."""
    told = marks(judge, pictures, scenes)  # (pictures, 3)
    return {name: intervals.wilson(int(right.sum()), len(right)) for name, right in zip(NAMES, told.T, strict=True)}


def chance(judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]) -> dict[str, float]:
    """What captions of other pictures get: the mean over as many shifts as there are, at most SHIFTS."""
    if len(scenes) < 2:
        raise ValueError(
            f"{len(scenes)} pictures of two things; chance needs another picture's caption: take 2 or more"
        )
    others = [[*scenes[by:], *scenes[:by]] for by in range(1, min(SHIFTS, len(scenes) - 1) + 1)]
    luck = [shares(judge, pictures, each) for each in others]
    return {name: statistics.mean(each[name]["value"] for each in luck) for name in NAMES}
