"""UNets with text (SD 1.5, 2.1, SDXL): self-attention in attn1 of every transformer block, each
level its own grid.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import KAttentionBlock
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import Family, Found, Layer, latents, noise_level, timesteps
from linattn.families.processors import SelfAttention


class UNet(Family):
    def attentions(self, model: nn.Module) -> Iterator[Found]:
        for place, level in _stages(model):
            side = model.config.sample_size
            trained = (side >> level) ** 2 if isinstance(side, int) else None
            stage = model.get_submodule(place)
            for name, module in stage.named_modules(prefix=place):
                # The upscaler's attn1 reads the text alone; a lone `Attention` of a block without
                # text is no attn1.
                if hasattr(module, "attn1") and not getattr(module, "only_cross_attention", False):
                    yield f"{name}.attn1", module.attn1, SelfAttention, trained

    def layers(self, model: nn.Module) -> list[Layer]:
        found = super().layers(model)
        if not found:
            blocks = sorted(
                {type(block).__name__ for block in (*model.down_blocks, *model.up_blocks)}
            )
            raise ValueError(
                f"this {type(model).__name__} is not supported: an operator replaces attn1 of "
                "transformer blocks, and "
                f"its blocks, {', '.join(blocks)}, have none (SimpleCrossAttn ones, as in "
                "DeepFloyd IF and Kandinsky "
                "2, read picture and text in one layer)"
            )
        return found

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        sample = arguments["sample"]  # (batch, channels, height, width)
        return Grid(*sample.shape[-2:]), noise_level(arguments.get("timestep"), sample), sample

    def levels(self, model: nn.Module) -> list[nn.Module]:
        return [
            module
            for module in model.modules()
            if isinstance(module, (Transformer2DModel, KAttentionBlock))
        ]

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Any]:
        sample, config = latents(model, side, batch), model.config
        width = config.cross_attention_dim
        width = width[0] if isinstance(width, (list, tuple)) else width
        given = {
            "sample": sample,
            "timestep": timesteps(noise, batch, sample.device),
            "encoder_hidden_states": sample.new_zeros(batch, 8, width),
        }
        if config.addition_embed_type == "text_time":  # SDXL: pooled text and six numbers on sizes
            sizes = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - sizes
            more = {
                "text_embeds": sample.new_zeros(batch, pooled),
                "time_ids": sample.new_zeros(batch, 6),
            }
            given["added_cond_kwargs"] = more
        return given


def _stages(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Every block by name, in forward order, and how often its sides were halved."""
    last = len(model.down_blocks) - 1
    for index in range(last + 1):
        yield f"down_blocks.{index}", index
    if model.mid_block is not None:
        yield "mid_block", last
    for index in range(last + 1):
        yield f"up_blocks.{index}", last - index
