"""The marks of a picture, right or wrong, from the judge and by formula.

- The judge marks shape and colour. Saturation says where a thing lies, as in pairs.py.
- A background is a formula of its kind, tone and period. The nearest of all backgrounds to the
  pixels outside the thing names its kind. This is right for all of 500 true pictures, both
  unchanged and through the autoencoder.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals, world
from linattn.world.marks import judge_marks
from linattn.world.pairs import SATURATED

# share of the union of drawn and wanted thing that both cover, from which on the place is right
IN_PLACE = 0.5
# candidates for every pattern: a step of .005 shifts the last stripe by an eighth of its period
PERIODS = 33


def shares(marks: Mapping[str, Tensor]) -> dict[str, intervals.Result]:
    """Return the share of right pictures for each mark, with Wilson's interval."""
    return {name: intervals.wilson(int(right.sum()), len(right)) for name, right in marks.items()}


def asked(judge: nn.Module, pictures: Tensor, scenes: Sequence[world.Scene]) -> dict[str, Tensor]:
    """Say for each picture whether the judge finds the shape and the colour of the scene's thing."""
    shape, colour = judge_marks(judge, pictures, torch.tensor([scene.label for scene in scenes]))
    return {"shape": shape, "colour": colour}


def things(pictures: Tensor) -> Tensor:
    """Mask the pixels of a thing, (pictures, side, side) booleans: backgrounds are far less
    saturated.
    """
    return pictures.amax(1) - pictures.amin(1) > SATURATED


def overlap(pictures: Tensor, scenes: Sequence[world.Scene]) -> Tensor:
    """Return the intersection of drawn and wanted thing over their union, (pictures,)."""
    drawn, wanted = things(pictures), things(world.render(scenes, pictures.shape[-1]))
    intersection = (drawn & wanted).flatten(1).sum(1)
    union = (drawn | wanted).flatten(1).sum(1)
    return intersection / union.clamp_min(1)


def backgrounds(pictures: Tensor) -> Tensor:
    """Return indices of world.BACKGROUNDS, (pictures,): the nearest of all backgrounds outside the
    thing.
    """
    patterns, kinds = _patterns(pictures.shape[-1])
    # with the thing's soft edge
    near = F.max_pool2d(things(pictures)[:, None].float(), 5, stride=1, padding=2)
    outside = (1 - near).expand(-1, 3, -1, -1).flatten(1)
    flat = pictures.flatten(1)
    # The squared distance is expanded, which needs no tensor of pictures x patterns x pixels.
    error = (
        (outside * flat**2).sum(1, keepdim=True)
        - 2 * (outside * flat) @ patterns.T
        + outside @ (patterns**2).T
    )
    return kinds[error.argmin(1)]


@functools.cache
def _patterns(side: int) -> tuple[Tensor, Tensor]:
    """Draw every background, (patterns, 3 side side); return them with the index of each one's
    kind.
    """
    periods = torch.linspace(0.20, 0.36, PERIODS).tolist()
    scenes, kinds = [], []
    for index, kind in enumerate(world.BACKGROUNDS):
        kind_periods = periods[:1] if kind == "plain" else periods
        for tone in world.TONES:
            patterns = [world.Background(kind, tone, period) for period in kind_periods]
            scenes += [world.Scene((), background) for background in patterns]
            kinds += [index] * len(patterns)
    return world.render(scenes, side).flatten(1), torch.tensor(kinds)
