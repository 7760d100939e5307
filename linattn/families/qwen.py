"""Qwen-Image: double blocks alone, with text first as the operators want it.

- Queries and keys have norms and rotary positions, given as complex factors.
- The grid is read from `img_shapes`, (frames, height, width) in tokens for every picture of every
  sample.
- Editing and layered models put several pictures into one sequence, which is no grid. Their class
  is the same, so the call shows it, and the call is refused.
- All texts of a batch are padded to the longest, and a mask marks the padding. Operators take no
  mask, because a linear read sums over all tokens. Padding is therefore refused; the stock pipeline
  passes no mask where there is none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.base import TEXT, Context, Family, Model, Slot, noise_level
from linattn.families.processors import JointAttention, refuse_padding

SIDE = 64  # Qwen-Image's tokens a side at 1,024 px


class QwenImage(Family):
    backbone = "Qwen-Image"
    models = "Qwen-Image"
    handed_down = "attention_kwargs"
    rotates = True

    def attentions(self, model: Model) -> Iterator[Slot]:
        for index, block in enumerate(model.transformer_blocks):
            yield Slot(f"transformer_blocks.{index}.attn", block.attn, JointAttention)

    def read(
        self, model: Model, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        sample = arguments["hidden_states"]  # (batch, tokens, channels)
        height, width = sides(arguments.get("img_shapes"), sample.shape[1])
        grid = Grid(height, width, arguments["encoder_hidden_states"].shape[1])
        return grid, noise_level(arguments.get("timestep"), sample, steps=1), sample

    def context(self, model: Model, arguments: Mapping[str, Any]) -> Context:
        # Padding is refused here and not in `read`, which a caller who knows the grid spares.
        refuse_padding(arguments.get("encoder_hidden_states_mask"))
        return super().context(model, arguments)

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        side = SIDE if side is None else side
        config, weight = model.config, next(model.parameters())
        return {
            "hidden_states": weight.new_zeros(batch, side * side, config.in_channels),
            "encoder_hidden_states": weight.new_zeros(batch, TEXT, config.joint_attention_dim),
            "timestep": weight.new_full((batch,), noise),
            "img_shapes": [[(1, side, side)]] * batch,
        }


def sides(shapes: Any, tokens: int) -> tuple[int, int]:
    """Return (height, width) in tokens of the one picture in `img_shapes`, alike in all samples."""
    if not shapes or not all(shapes):
        raise ValueError(
            f"img_shapes is {shapes!r}, so the grid is not known: pass [[(1, height, width)]] * "
            "batch"
        )
    samples = [_pictures(sample) for sample in (shapes if isinstance(shapes, list) else [shapes])]
    first = samples[0]
    if any(sample != first for sample in samples):
        raise ValueError(
            f"img_shapes tell of samples of different sizes, {samples}: call the model once for "
            "each size"
        )
    if len(first) != 1 or first[0][0] != 1:
        raise ValueError(
            f"img_shapes tell of {len(first)} pictures a sample, {first}: one picture of one frame "
            "is a grid; reference pictures, layers and frames in the same sequence are not "
            "supported"
        )
    _, height, width = first[0]
    if height * width != tokens:
        raise ValueError(
            f"{tokens} picture tokens, but img_shapes tell of a picture of {height} x {width} "
            "tokens"
        )
    return height, width


def _pictures(sample: Any) -> list[tuple[int, int, int]]:
    """Return a sample's pictures; diffusers also takes one picture without a list around it."""
    if isinstance(sample[0], (list, tuple)):
        return [tuple(picture) for picture in sample]
    return [tuple(sample)]
