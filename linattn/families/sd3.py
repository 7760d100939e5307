"""SD3 and SD3.5: joint attention of text and picture, and in dual blocks a second one of the
picture alone.

- The pipeline puts text last; the operators see it first. Attention does not mind the order, and
  positions are added before the blocks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import Family, Found, latents, noise_level, timesteps
from linattn.families.processors import JointAttention, SelfAttention

TEXT = 8  # tokens of an example


class SD3(Family):
    handed_down = "joint_attention_kwargs"

    def attentions(self, model: nn.Module) -> Iterator[Found]:
        for index, block in enumerate(model.transformer_blocks):
            yield f"transformer_blocks.{index}.attn", block.attn, JointAttention, None
            if block.attn2 is not None:
                picture = (model.config.sample_size // model.config.patch_size) ** 2
                yield f"transformer_blocks.{index}.attn2", block.attn2, SelfAttention, picture

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        # (batch, channels, height, width)
        sample, patch = arguments["hidden_states"], model.config.patch_size
        text = arguments["encoder_hidden_states"].shape[1]
        grid = Grid(sample.shape[-2] // patch, sample.shape[-1] // patch, text)
        return grid, noise_level(arguments.get("timestep"), sample), sample

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Tensor]:
        sample, config = latents(model, side, batch, model.config.patch_size), model.config
        return {
            "hidden_states": sample,
            "timestep": timesteps(noise, batch, sample.device).to(sample.dtype),
            "encoder_hidden_states": sample.new_zeros(batch, TEXT, config.joint_attention_dim),
            "pooled_projections": sample.new_zeros(batch, config.pooled_projection_dim),
        }
