"""Qwen-Image: double blocks alone, text first as the operators want it; qk-norm, and RoPE as
complex factors.

- The grid is read from `img_shapes`, (frames, height, width) in tokens for every picture of every
  sample.
- Editing and layered models put several pictures into one sequence, which is no grid. Their class
  is the same, so the call is what tells, and is refused.
- A text is as long as its batch's longest, and a mask says what is padding. The operators know no
  mask: a linear read sums over all tokens. So padding is refused; the stock pipeline passes no mask
  where there is none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import Context, Family, Found, noise_level
from linattn.families.processors import JointAttention, refuse_padding

TEXT, SIDE = 8, 64  # tokens of an example; Qwen-Image's tokens a side at 1,024 px


class QwenImage(Family):
    handed_down = "attention_kwargs"
    rotates = True

    def attentions(self, model: nn.Module) -> Iterator[Found]:
        for index, block in enumerate(model.transformer_blocks):
            yield f"transformer_blocks.{index}.attn", block.attn, JointAttention, None

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        sample = arguments["hidden_states"]  # (batch, tokens, channels)
        height, width = sides(arguments.get("img_shapes"), sample.shape[1])
        grid = Grid(height, width, arguments["encoder_hidden_states"].shape[1])
        return grid, noise_level(arguments.get("timestep"), sample, steps=1), sample

    def context(self, model: nn.Module, arguments: Mapping[str, Any]) -> Context:
        # Here and not in `read`, which a caller who knows the grid spares.
        refuse_padding(arguments.get("encoder_hidden_states_mask"))
        return super().context(model, arguments)

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Any]:
        side, config, weight = (
            SIDE if side is None else side,
            model.config,
            next(model.parameters()),
        )
        return {
            "hidden_states": weight.new_zeros(batch, side * side, config.in_channels),
            "encoder_hidden_states": weight.new_zeros(batch, TEXT, config.joint_attention_dim),
            "timestep": weight.new_full((batch,), noise),
            "img_shapes": [[(1, side, side)]] * batch,
        }


def sides(shapes: Any, tokens: int) -> tuple[int, int]:
    """(height, width) in tokens of the one picture that `img_shapes` tells of, the same for every
    sample.
    """
    if not shapes or not all(shapes):
        raise ValueError(
            f"img_shapes is {shapes!r}, so the grid is not known: pass [[(1, height, width)]] * "
            "batch"
        )
    samples = (
        [_pictures(each) for each in shapes] if isinstance(shapes, list) else [_pictures(shapes)]
    )
    first = samples[0]
    if any(each != first for each in samples):
        raise ValueError(
            f"img_shapes tell of samples of different sizes, {samples}: call the model once for "
            "each size"
        )
    if len(first) != 1 or first[0][0] != 1:
        raise ValueError(
            f"img_shapes tell of {len(first)} pictures a sample, {first}: one picture of one frame "
            "is a grid; "
            "reference pictures, layers and frames in the same sequence are not supported"
        )
    _, height, width = first[0]
    if height * width != tokens:
        raise ValueError(
            f"{tokens} picture tokens, but img_shapes tell of a picture of {height} x {width} "
            "tokens"
        )
    return height, width


def _pictures(sample: Any) -> list[tuple[int, int, int]]:
    """diffusers takes one picture without a list around it, too."""
    return (
        [tuple(each) for each in sample]
        if isinstance(sample[0], (list, tuple))
        else [tuple(sample)]
    )
