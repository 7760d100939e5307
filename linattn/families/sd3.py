"""SD3 and SD3.5: joint attention of text and picture.

- Dual blocks have a second attention, of the picture alone.
- The pipeline puts text last; the operators see it first. Attention does not depend on the order,
  and positions are added before the blocks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.base import TEXT, Family, Model, Slot, latents, required, timesteps
from linattn.families.conditions import Conditioning, Prompts
from linattn.families.flow import FlowCaptions, shifted
from linattn.families.processors import JointAttention, SelfAttention


class PooledCaptions(FlowCaptions):
    """Condition SD3 on captions as tokens of the self-attention and as a pooled vector."""

    def encode(self, prompts: Prompts) -> Conditioning:
        states, _, pooled, _ = self.pipe.encode_prompt(
            self.check(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            **self.length_kwargs(),
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        tokens = like.shape[-2] * like.shape[-1] // self.divisor**2
        scheduler.set_timesteps(steps, device=like.device, **shifted(scheduler, tokens))


class SD3(Family):
    backbone = "SD3"
    models = "SD3, SD3.5"
    conditions = PooledCaptions
    prompt_tokens = 256
    clip_tokens = 77
    handed_down = "joint_attention_kwargs"

    def attentions(self, model: Model) -> Iterator[Slot]:
        picture = (model.config.sample_size // model.config.patch_size) ** 2
        for index, block in enumerate(model.transformer_blocks):
            name = f"transformer_blocks.{index}"
            yield Slot(f"{name}.attn", block.attn, JointAttention)
            if block.attn2 is not None:
                yield Slot(f"{name}.attn2", block.attn2, SelfAttention, picture)

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        sample = required(model, arguments, self.sample)  # (batch, channels, height, width)
        height, width = (side // model.config.patch_size for side in sample.shape[-2:])
        return Grid(height, width, required(model, arguments, "encoder_hidden_states").shape[1])

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        config = model.config
        sample = latents(model, side, batch, config.patch_size)
        return {
            "hidden_states": sample,
            "timestep": timesteps(noise, batch, sample.device).to(sample.dtype),
            "encoder_hidden_states": sample.new_zeros(batch, TEXT, config.joint_attention_dim),
            "pooled_projections": sample.new_zeros(batch, config.pooled_projection_dim),
        }
