"""Right or wrong of a picture, from the judge and by formula.

- Shape and colour are the judge's. Where a thing lies is read from saturation, as in pairs.py.
- A background is a formula of its kind, tone and period: the nearest of all of them to what lies outside the thing says
  which it is. Of 500 true pictures, as they are and through the autoencoder, it finds the kind of all.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import intervals, world
from linattn.world.marks import judge_marks
from linattn.world.pairs import SATURATED

IN_PLACE = 0.5  # of the union that drawn and asked thing share, from which on it lies where it was asked
PERIODS = 33  # tried for every pattern: a step of .005 shifts the last stripe by an eighth of its period


def shares(marks: Mapping[str, Tensor]) -> dict[str, intervals.Result]:
    """With Wilson's intervals."""
    return {name: intervals.wilson(int(right.sum()), len(right)) for name, right in marks.items()}


def asked(eye: nn.Module, pictures: Tensor, scenes: Sequence[world.Scene]) -> dict[str, Tensor]:
    """Whether the judge finds shape and colour of the scenes' things."""
    shape, colour = judge_marks(eye, pictures, torch.tensor([scene.label for scene in scenes]))
    return {"shape": shape, "colour": colour}


def things(pictures: Tensor) -> Tensor:
    """Where a thing is, (pictures, side, side) booleans: backgrounds are far less saturated."""
    return pictures.amax(1) - pictures.amin(1) > SATURATED


def overlap(pictures: Tensor, scenes: Sequence[world.Scene]) -> Tensor:
    """(pictures,): area that drawn and asked thing share over the area of either."""
    drawn, wanted = things(pictures), things(world.render(scenes, pictures.shape[-1]))
    both, either = ((each.flatten(1).sum(1)) for each in (drawn & wanted, drawn | wanted))
    return both / either.clamp_min(1)


def backgrounds(pictures: Tensor) -> Tensor:
    """(pictures,) indices of world.BACKGROUNDS, by the nearest of all backgrounds outside the thing."""
    patterns, kinds = _patterns(pictures.shape[-1])
    near = F.max_pool2d(things(pictures)[:, None].float(), 5, stride=1, padding=2)  # its soft edge too
    seen = (1 - near).expand(-1, 3, -1, -1).flatten(1)
    flat = pictures.flatten(1)
    # Squared distance over what is seen, without a tensor of pictures x patterns x pixels.
    error = (seen * flat**2).sum(1, keepdim=True) - 2 * (seen * flat) @ patterns.T + seen @ (patterns**2).T
    return kinds[error.argmin(1)]


@functools.cache
def _patterns(side: int) -> tuple[Tensor, Tensor]:
    """Every background: (patterns, 3 side side) and the index of its kind."""
    periods = torch.linspace(0.20, 0.36, PERIODS).tolist()
    every = [
        (number, world.Background(kind, tone, period))
        for number, kind in enumerate(world.BACKGROUNDS)
        for tone in world.TONES
        for period in (periods[:1] if kind == "plain" else periods)
    ]
    drawn = world.render([world.Scene((), background) for _, background in every], side)
    return drawn.flatten(1), torch.tensor([number for number, _ in every])
