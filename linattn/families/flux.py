"""FLUX: double blocks, where text has weights of its own, then single ones on both as one sequence;
RoPE, qk-norm.

- The grid is read from `img_ids`, whose rows are (0, row, column): a row of tokens is as long as
  there are ids equal to the first in the first two. Counting is right in bf16, where ids above 256
  merge and the largest one is off.
- That asks a GPU for one number a call; who knows the grid hands down a `Context` and spares it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import Family, Found, noise_level
from linattn.families.processors import JointAttention

TEXT, SIDE = 8, 64  # tokens of an example; FLUX.1's tokens a side at 1,024 px
# its heads and their width; 512 of text, 64 x 64: no config holds that
FLUX_1, TRAINED = (24, 128), 4608


class Flux(Family):
    handed_down = "joint_attention_kwargs"
    rotates = True

    def attentions(self, model: nn.Module) -> Iterator[Found]:
        shape = model.config.num_attention_heads, model.config.attention_head_dim
        trained = TRAINED if shape == FLUX_1 else None
        for index, block in enumerate(model.transformer_blocks):
            yield f"transformer_blocks.{index}.attn", block.attn, JointAttention, trained
        for index, block in enumerate(model.single_transformer_blocks):
            yield f"single_transformer_blocks.{index}.attn", block.attn, JointAttention, trained

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        # (batch, tokens, channels), (tokens, 3)
        sample, ids = arguments["hidden_states"], arguments["img_ids"]
        height, width = sides(ids[0] if ids.ndim == 3 else ids)
        if height * width != sample.shape[1]:
            raise ValueError(
                f"{sample.shape[1]} picture tokens, but img_ids tell of a picture of {height} x "
                f"{width} tokens: "
                "reference pictures in the same sequence are not supported"
            )
        grid = Grid(height, width, arguments["encoder_hidden_states"].shape[1])
        return grid, noise_level(arguments.get("timestep"), sample, steps=1), sample

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Tensor]:
        side, config, weight = (
            SIDE if side is None else side,
            model.config,
            next(model.parameters()),
        )
        ids = torch.zeros(side, side, 3, device=weight.device)
        ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)
        given = {
            "hidden_states": weight.new_zeros(batch, side * side, config.in_channels),
            "encoder_hidden_states": weight.new_zeros(batch, TEXT, config.joint_attention_dim),
            "pooled_projections": weight.new_zeros(batch, config.pooled_projection_dim),
            "timestep": weight.new_full((batch,), noise),
            "img_ids": ids.flatten(0, 1),
            "txt_ids": torch.zeros(TEXT, 3, device=weight.device),
        }
        return (
            {**given, "guidance": weight.new_full((batch,), 3.5)}
            if config.guidance_embeds
            else given
        )


def sides(ids: Tensor) -> tuple[int, int]:
    """(height, width) in tokens of the first picture that the ids (tokens, 3) tell of."""
    own = int((ids[:, 0] == ids[0, 0]).sum())
    width = int((ids[:, :2] == ids[0, :2]).all(1).sum())
    if own % width:
        raise ValueError(
            f"img_ids tell of {own} picture tokens in rows of {width}: not a rectangle"
        )
    return own // width, width
