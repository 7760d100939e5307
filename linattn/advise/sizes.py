"""What a model computes for a picture of one size: its attentions, its parts, its products."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linattn import families, surgery
from linattn.advise.backbone import Backbone
from linattn.advise.parts import Part, Passing, recording
from linattn.attention.base import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation.macs import macs
from linattn.families import KEY, Context

LEAST = 256  # px: sides are halved down to here for the sizes that are timed first
NOISE = 0.5


@dataclass(frozen=True)
class Layers:
    """Describe self-attentions of one shape on one grid; all of them cost the same."""

    shape: LayerShape
    grid: Grid
    count: int  # how many layers are of this shape


@dataclass(frozen=True)
class Size:
    """Say what a model computes for a picture of one size."""

    side: int  # pixels
    layers: tuple[Layers, ...]
    parts: tuple[Part, ...]
    macs: int  # multiply-accumulates outside the attention cores

    @property
    def tokens(self) -> int:
        """Return the tokens of the largest grid."""
        return max(layers.grid.tokens for layers in self.layers)


def prepare(backbone: Backbone) -> None:
    """Make every self-attention of a model on meta return its values.

    What is left is the model outside the attention cores: projections, norms and positions stay.
    """
    surgery.linearize(backbone.model, "softmax", keep_original=False)
    for layer in families.layers(backbone.model):
        with torch.device("meta"):
            setattr(layer.attn, KEY, Passing(layer.shape))


def checked(backbone: Backbone, sides: Sequence[int]) -> list[int]:
    """Return the sides in ascending order, or raise a ValueError for the first impossible one."""
    if not sides:
        raise ValueError("no side: name at least one, in pixels, as in --side 1024 2048")
    for side in sides:
        backbone.example_side(side)
    return sorted(set(sides))


def ladder(backbone: Backbone, sides: Sequence[int]) -> list[int]:
    """Return the sides and the halves of each down to 256 px, in ascending order.

    A size is timed after its half, so that it is known how long it will take.
    """
    return sorted({*sides, *(half for side in sides for half in _halves(backbone, side))})


def _halves(backbone: Backbone, side: int) -> Iterator[int]:
    while side // 2 >= LEAST and not side // 2 % backbone.cell:
        side //= 2
        yield side


@torch.no_grad()
def measure(backbone: Backbone, side: int) -> Size:
    """Run the prepared model's forward on meta for a picture of `side` px, and say what it met."""
    model, inputs = backbone.model, inputs_of(backbone, side)
    try:
        with recording(model) as parts:
            grids = families.grids(model, **inputs)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{backbone.title} takes no latents for a side of {side} px: {reason}"
        ) from None
    counted = macs(model, inputs=inputs)
    pairs = zip(families.layers(model), grids, strict=True)
    shapes = Counter((dataclasses.replace(layer.shape, index=0), grid) for layer, grid in pairs)
    layers = tuple(Layers(shape, grid, count) for (shape, grid), count in shapes.items())
    return Size(side, layers, tuple(parts), counted["total"] - counted["core"])


def inputs_of(backbone: Backbone, side: int) -> dict[str, Any]:
    """Return the arguments of a forward on meta, with a text of the model's own length."""
    family = families.family(backbone.model)
    latent = backbone.example_side(side)
    inputs = family.example(backbone.model, latent, 1, NOISE)
    if "encoder_hidden_states" in inputs:
        inputs |= _lengthened(inputs, max(backbone.text, 1))
    if family.rotates:  # FLUX counts its ids, which hold nothing on meta
        sample = inputs["hidden_states"]
        grid = Grid(latent, latent, max(backbone.text, 1))
        context = Context.of(grid, sample.new_full((1,), NOISE), sample)
        inputs[family.handed_down] = {KEY: context}
    return inputs


def _lengthened(inputs: Mapping[str, Any], text: int) -> dict[str, Tensor]:
    """Return the arguments that have a row for each token of the text, with `text` rows."""
    states = inputs["encoder_hidden_states"]
    longer = {"encoder_hidden_states": states.new_zeros(1, text, states.shape[2])}
    if "txt_ids" in inputs:
        longer["txt_ids"] = inputs["txt_ids"].new_zeros(text, 3)
    return longer
