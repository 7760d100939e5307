"""Mark pictures, right or wrong, by the judge and by formula.

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


def judged(judge: nn.Module, pictures: Tensor, scenes: Sequence[world.Scene]) -> dict[str, Tensor]:
    """Say for each picture whether the judge finds its scene's shape and colour."""
    shape, colour = judge_marks(judge, pictures, torch.tensor([scene.label for scene in scenes]))
    return {"shape": shape, "colour": colour}


def things(pictures: Tensor) -> Tensor:
    """Return true for the pixels of things, (pictures, side, side), by their saturation."""
    return pictures.amax(1) - pictures.amin(1) > SATURATED


def overlap(pictures: Tensor, scenes: Sequence[world.Scene]) -> Tensor:
    """Return the intersection of drawn and wanted thing over their union, (pictures,)."""
    drawn, wanted = things(pictures), things(world.render(scenes, pictures.shape[-1]))
    intersection = (drawn & wanted).flatten(1).sum(1)
    union = (drawn | wanted).flatten(1).sum(1)
    return intersection / union.clamp_min(1)


def backgrounds(pictures: Tensor) -> Tensor:
    """Return the index of the nearest of world.BACKGROUNDS outside the thing, (pictures,)."""
    patterns, indices = _patterns(pictures.shape[-1])
    # The pooling also covers the soft edge of a thing.
    near = F.max_pool2d(things(pictures)[:, None].float(), 5, stride=1, padding=2)
    outside = (1 - near).expand(-1, 3, -1, -1).flatten(1)
    flat = pictures.flatten(1)
    # The squared distance is expanded, which needs no tensor of pictures x patterns x pixels.
    error = (
        (outside * flat**2).sum(1, keepdim=True)
        - 2 * (outside * flat) @ patterns.T
        + outside @ (patterns**2).T
    )
    return indices[error.argmin(1)]


@functools.cache
def _patterns(side: int) -> tuple[Tensor, Tensor]:
    """Draw every background, (patterns, 3 side side), with its index in world.BACKGROUNDS."""
    all_periods = torch.linspace(0.20, 0.36, PERIODS).tolist()
    scenes, indices = [], []
    for index, name in enumerate(world.BACKGROUNDS):
        periods = all_periods[:1] if name == "plain" else all_periods
        for tone in world.TONES:
            patterns = [world.Background(name, tone, period) for period in periods]
            scenes += [world.Scene((), background) for background in patterns]
            indices += [index] * len(patterns)
    return world.render(scenes, side).flatten(1), torch.tensor(indices)
