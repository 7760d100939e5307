"""Mark pictures of two things: find both by their saturation and show them to the judge.

- Things are far more saturated than any background, so a mask of saturated pixels falls into
  patches. The two largest patches are the things.
- There are two readings of which patch is which thing. The reading with more of the two shapes and
  two colours right is taken, and the relation is judged by it. A picture without two patches is
  wrong in all marks.
- The marks of true pictures bound what any model can reach. Captions of other pictures give chance.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals
from linattn.reader import between, checked, typed
from linattn.world import drawing
from linattn.world.marks import check_pictures

# largest minus smallest of red, green, blue: backgrounds reach .24, the palest thing has .55
SATURATED = 0.45
LEAST = 0.004  # share of the picture's area below which a patch is ignored as a speck
NAMES = ("two_shapes", "two_colours", "relation")
# Chance is the mean over the captions of so many other pictures: one gave 50 % where eight give 37.
SHIFTS = 8
# The side of the cut, in sides of the patch's box. The judge is right on 99.8 % of the shapes of
# true pictures, and with a side of 2.4 on 83 %.
FRAME = 1.4


@dataclass(frozen=True)
class Patch:
    x: float  # centre, in sides of the picture
    y: float
    side: float  # of the bounding box, in sides of the picture


@checked(picture=typed(), most=between(0))
def patches(picture: Tensor, most: int = 2) -> list[Patch]:
    """Return the saturated patches of a picture (3, side, side) in [0, 1], the largest first."""
    check_pictures(picture[None])
    mask = picture.amax(0) - picture.amin(0) > SATURATED
    components = _components(mask)
    candidates = []
    for number in components.unique()[1:]:  # 0 is background
        y, x = (components == number).nonzero(as_tuple=True)
        if len(y) >= LEAST * mask.numel():
            candidates.append((len(y), y, x))
    candidates.sort(key=lambda candidate: -candidate[0])
    return [_patch(y, x, mask.shape[0]) for _, y, x in candidates[:most]]


def _patch(y: Tensor, x: Tensor, side: int) -> Patch:
    """Return the patch of the pixels (y, x) in a picture of `side` pixels."""
    left, right = int(x.min()), int(x.max()) + 1
    top, bottom = int(y.min()), int(y.max()) + 1
    longest = max(right - left, bottom - top)
    return Patch((left + right) / 2 / side, (top + bottom) / 2 / side, longest / side)


def _components(mask: Tensor) -> Tensor:
    """Number the connected patches of a mask, with 0 outside.

    The largest index of a patch spreads until nothing changes.
    """
    numbers = torch.arange(1, mask.numel() + 1, device=mask.device).view(mask.shape).float() * mask
    while True:
        spread = F.max_pool2d(numbers[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, numbers):
            return numbers.long()
        numbers = spread


def cut(picture: Tensor, patch: Patch, side: int = 64) -> Tensor:
    """Crop a picture to the patch; outside the picture the colour of its border continues."""
    half = patch.side * FRAME / 2
    ticks = torch.linspace(-1, 1, side, device=picture.device) * half
    y, x = torch.meshgrid(patch.y + ticks, patch.x + ticks, indexing="ij")
    grid = torch.stack([x, y], 2) * 2 - 1
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(picture[None], grid[None], **options)[0]


@checked(judge=typed(), pictures=typed(), scenes=typed(empty=True))
@torch.no_grad()
def marks(judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]) -> Tensor:
    """Say whether both shapes, both colours and the relation are right: (pictures, 3) booleans."""
    if len(pictures):
        check_pictures(pictures)
    _check_scenes(pictures, scenes)
    patch_lists = [patches(picture) for picture in pictures]
    cuts = []
    for picture, picture_patches in zip(pictures, patch_lists, strict=True):
        cuts += [cut(picture, patch) for patch in picture_patches]
    shapes, colours = [], []
    if cuts:
        judged = judge(torch.stack(cuts))
        shapes, colours = judged.shape.argmax(1).tolist(), judged.colour.argmax(1).tolist()
    verdicts, start = [], 0
    for picture_patches, scene in zip(patch_lists, scenes, strict=True):
        end = start + len(picture_patches)
        seen = list(zip(picture_patches, shapes[start:end], colours[start:end], strict=True))
        start = end
        verdicts.append(_mark(seen, scene))
    return torch.tensor(verdicts, dtype=torch.bool).view(-1, 3)


def _check_scenes(pictures: Tensor, scenes: Sequence[drawing.Scene]) -> None:
    if len(pictures) != len(scenes):
        raise ValueError(f"{len(pictures)} pictures and {len(scenes)} scenes; pass as many of each")
    if any(len(scene.things) != 2 for scene in scenes):
        raise ValueError("a scene shows one thing; pairs are marked in pictures of two things")


def _mark(seen: list[tuple[Patch, int, int]], scene: drawing.Scene) -> tuple[bool, bool, bool]:
    """Mark one picture by the better reading of its (patch, shape, colour)."""
    if len(seen) < 2:
        return False, False, False
    readings = [_read(order, scene) for order in (seen, seen[::-1])]
    best = max(readings, key=lambda reading: (reading[0], reading[3]))
    return best[1:]


def _read(seen: list[tuple[Patch, int, int]], scene: drawing.Scene) -> tuple[int, bool, bool, bool]:
    """Compare the patches with the scene's things in their order.

    The result is the number of right shapes and colours, then whether all shapes, all colours and
    the relation are right.
    """
    shape_names, colour_names = tuple(drawing.SHAPES), tuple(drawing.COLOURS)
    shapes, colours = [], []
    for (_, shape, colour), thing in zip(seen, scene.things, strict=True):
        shapes.append(shape_names[shape] == thing.shape)
        colours.append(colour_names[colour] == thing.colour)
    relation = drawing.relation(seen[0][0], seen[1][0]) == scene.relation
    return sum(shapes) + sum(colours), all(shapes), all(colours), relation


def shares(
    judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]
) -> dict[str, dict[str, Any]]:
    """Count the pictures that are right in each mark, with Wilson's interval."""
    return intervals.shares(named_marks(judge, pictures, scenes))


def named_marks(
    judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]
) -> dict[str, Tensor]:
    """Say which pictures are right, by mark of NAMES."""
    columns = marks(judge, pictures, scenes).T  # (3, pictures)
    return dict(zip(NAMES, columns, strict=True))


def chance(judge: nn.Module, pictures: Tensor, scenes: Sequence[drawing.Scene]) -> dict[str, float]:
    """Mark the pictures against captions of other pictures: the mean over up to SHIFTS shifts."""
    if len(scenes) < 2:
        raise ValueError(
            f"{len(scenes)} pictures of two things; chance needs another picture's caption: take 2 "
            "or more"
        )
    results = []
    for shift in range(1, min(SHIFTS, len(scenes) - 1) + 1):
        shifted = [*scenes[shift:], *scenes[:shift]]
        results.append(shares(judge, pictures, shifted))
    means = {}
    for name in NAMES:
        means[name] = statistics.mean(result[name]["value"] for result in results)
    return means
